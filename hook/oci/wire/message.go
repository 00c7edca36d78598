// Package wire is what cmd/stoker-hook and the agent have in common: how the hook reads a container's state, and the one message
// that goes from it to the agent. It imports nothing that costs time when a process starts, for the hook starts with every
// container and waits for nobody. Functions keep nothing and may be called from any goroutine.
//
// The conversation, over a connection of SOCK_SEQPACKET, so that a message is whole or not there, no reader has to guess where it
// ends, and the kernel says who is at the other end (SO_PEERCRED):
//
//	hook → agent   one message: Message.Append, at most MaxMessage bytes; as ancillary data the container's pid as SCM_CREDENTIALS,
//	               which the kernel checks and translates into the agent's pid namespace, where the hook may send that
//	agent → hook   one byte, InScope, once it is decided whether the container is profiled, and if it is, once its cgroup is in
//	               scope in the kernel. Or nothing, and the connection ends: the message was refused, or there is no time for it
package wire

const (
	// Socket is where the agent listens unless it is told otherwise.
	Socket = "/run/stoker/hook.sock"
	// SocketVariable is the environment variable that names another socket to the hook.
	SocketVariable = "STOKER_HOOK_SOCKET"
	// MaxState is how many bytes of a state the hook reads. runc's has some hundred, CRI-O's annotations make it tens of kilobytes.
	MaxState = 1 << 20
	// MaxMessage is how long a message may be.
	MaxMessage = 4096
	// MaxID is how long a container's id may be: it is the name of a directory wherever an engine keeps one.
	MaxID = 255
	// WaitMillis is how long the hook waits for the agent, in milliseconds, connecting and sending included.
	WaitMillis = 20
	// StateMillis is how long the hook waits for the runtime to write the state, in milliseconds.
	StateMillis = 1000
	// InScope is the agent's answer.
	InScope = 'S'
)

// version is the first byte of a message. A hook and an agent of different versions do not understand each other, which the
// agent counts; the hook then works as if there were no agent.
const version = 1

// flagCut is set in the second byte when annotations were left out because they did not fit.
const flagCut = 1

// Message is what the hook tells about a container.
type Message struct {
	ID string
	// PID is the container's first process, as the hook's pid namespace numbers it.
	PID int
	// Annotations are those of Wanted that fit.
	Annotations map[string]string
	// Cut says that some did not.
	Cut bool
}

// Wanted reports whether an annotation is of use to the agent: what names the pod and the container, where the engine says it
// there, and by what a container steers its own profiling. CRI-O's include whole JSON documents; those stay where they are.
func Wanted(key []byte) bool {
	switch string(key) {
	case // containerd's CRI
		"io.kubernetes.cri.container-name", "io.kubernetes.cri.container-type", "io.kubernetes.cri.image-name",
		"io.kubernetes.cri.sandbox-id", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-uid",
		// CRI-O
		"io.kubernetes.container.name", "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid",
		"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.ImageName",
		// Podman and CRI-O
		"io.container.manager",
		// ours
		"stoker.enable", "stoker.service", "stoker.frequency", "stoker.tenant",
		"pyroscope.io/service_name":
		return true
	}
	return false
}

// Append appends the message about a state to b. ok is false when there is nothing to tell: no id, one that is too long, or no
// pid. Annotations that do not fit are left out, which the message says.
func (s State) Append(b []byte) (message []byte, ok bool) {
	if len(s.ID) == 0 || len(s.ID) > MaxID || s.PID <= 0 {
		return b, false
	}
	start := len(b)
	b = append(b, version, 0, byte(s.PID), byte(s.PID>>8), byte(s.PID>>16), byte(s.PID>>24))
	b = appendText(b, s.ID)
	for _, a := range s.Annotations {
		if len(b)-start+4+len(a.Key)+len(a.Value) > MaxMessage {
			b[start+1] |= flagCut
			continue
		}
		b = appendText(appendText(b, a.Key), a.Value)
	}
	return b, true
}

func appendText(b, s []byte) []byte {
	return append(append(b, byte(len(s)), byte(len(s)>>8)), s...)
}

// Parse reads a message. ok is false when it is none; nothing of it can be believed then.
func Parse(b []byte) (m Message, ok bool) {
	if len(b) > MaxMessage || len(b) < 6 || b[0] != version || b[1]&^flagCut != 0 {
		return Message{}, false
	}
	m.Cut = b[1]&flagCut != 0
	pid := uint32(b[2]) | uint32(b[3])<<8 | uint32(b[4])<<16 | uint32(b[5])<<24
	b = b[6:]
	id, b, ok := cutText(b)
	if !ok || id == "" || len(id) > MaxID || pid == 0 || pid > 1<<31-1 {
		return Message{}, false
	}
	m.ID, m.PID = id, int(pid)
	for len(b) > 0 {
		var key, value string
		if key, b, ok = cutText(b); !ok {
			return Message{}, false
		}
		if value, b, ok = cutText(b); !ok {
			return Message{}, false
		}
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations[key] = value
	}
	return m, true
}

func cutText(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := int(b[0]) | int(b[1])<<8
	if len(b)-2 < n {
		return "", nil, false
	}
	return string(b[2 : 2+n]), b[2+n:], true
}
