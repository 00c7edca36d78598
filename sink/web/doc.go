// Package web is the local UI and the API of one agent: what is in its registry and its store, looked at in a browser, with
// curl, or through the agent's Unix socket by the command line.
//
// [Handler] makes the whole of it from a [Backend]; [Listen] and [Serve] put it on a loopback port or on a Unix socket. The
// same handler serves both; recording ([RecordRequest]) is possible only over the socket, whose mode and peer credentials say
// who may make the agent work. docs/api.md describes each request.
//
// Any goroutine may call; each request runs on its own. Requests that merge profiles are bounded in number, bytes and time.
// Nothing here writes to the store, to a file, or to anything but the answer; nothing is loaded from another host; no program
// is started, no file named by a profile is opened; there are no cookies.
package web
