package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Engine is a container engine's socket. Wanted: the configuration names it; else it is one of the usual places. Version asks the engine
// behind it for its version, which also shows that it answers; nil: that it takes connections is all that is tried.
type Engine struct {
	Name, Socket string
	Wanted       bool
	Version      func(ctx context.Context, socket string) (string, error)
}

// Engines is one check for each socket. agentRuns: that whoever asks may not connect says nothing of the agent, whose own findings are told
// elsewhere.
func Engines(engines []Engine, agentRuns bool) []Check {
	var out []Check
	for _, e := range engines {
		out = append(out, Check{"engines", e.Name, func(ctx context.Context) []Finding { return engine(ctx, e, agentRuns) }})
	}
	return out
}

func engine(ctx context.Context, e Engine, agentRuns bool) []Finding {
	at := e.Name + " " + e.Socket
	conn, err := new(net.Dialer).DialContext(ctx, "unix", e.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !e.Wanted:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{{at, Broken, "the configuration names it, and it does not exist", "start the engine, or correct runtimes." + e.Name + ".address"}}
	case errors.Is(err, fs.ErrPermission) && agentRuns:
		return []Finding{{at, OK, "this user may not connect; the agent says above if it may not", ""}}
	case errors.Is(err, fs.ErrPermission):
		return []Finding{{at, Degraded, "this user may not connect: containers are found by their cgroups, without names", "run as root, or join the socket's group: stat -c %G " + e.Socket}}
	case errors.Is(err, syscall.ECONNREFUSED):
		return []Finding{{at, Degraded, "nobody listens there", "systemctl status " + e.Name}}
	case err != nil:
		return []Finding{{at, Degraded, err.Error(), "systemctl status " + e.Name}}
	}
	conn.Close()
	if e.Version == nil {
		return []Finding{{at, OK, "takes connections", ""}}
	}
	version, err := e.Version(ctx, e.Socket)
	if err != nil {
		return []Finding{{at, Degraded, "takes connections and does not answer as an engine does: " + err.Error(), "systemctl restart " + e.Name}}
	}
	return []Finding{{at, OK, "version " + version, ""}}
}

// DockerVersion asks Docker's API, which Podman has too (GET /version).
func DockerVersion(ctx context.Context, socket string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/version", nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var v struct{ Version string }
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&v); err != nil {
		return "", fmt.Errorf("status %s: %w", answer.Status, err)
	}
	if v.Version == "" || len(v.Version) > 100 {
		return "", fmt.Errorf("status %s, and no version", answer.Status)
	}
	return v.Version, nil
}

// Store checks where profiles are kept. minFree is a share of the file system, maxSize in bytes.
func Store(path string, maxSize int64, minFree float64, agentRuns bool) Check {
	return Check{"store", path, func(context.Context) []Finding { return storeRow(path, maxSize, minFree, agentRuns) }}
}

func storeRow(path string, maxSize int64, minFree float64, agentRuns bool) []Finding {
	dir := filepath.Dir(path)
	for {
		if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir) // the agent makes it
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil && !agentRuns {
		return one(Broken, fmt.Sprintf("%s cannot be written: %v", dir, err), "run as root, or name another place: store.path")
	}
	var size int64
	for _, f := range []string{path, path + "-wal"} {
		if st, err := os.Stat(f); err == nil {
			size += st.Size()
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return one(Degraded, err.Error(), "df "+dir)
	}
	total, free := float64(st.Blocks)*float64(st.Bsize), float64(st.Bavail)*float64(st.Bsize)
	detail := fmt.Sprintf("%d MiB of at most %d; the disk has %.0f MiB free", size>>20, maxSize>>20, free/(1<<20))
	switch {
	case total > 0 && free < minFree*total:
		return one(Degraded, detail+fmt.Sprintf(", less than store.min_free (%.0f %%): old profiles go to make room", 100*minFree), "make room on the file system of "+dir)
	case free < float64(maxSize-size):
		return one(OK, detail+": fewer profiles will be kept than store.max_size allows", "")
	}
	return one(OK, detail, "")
}

// Prober is a server that profiles are pushed to.
type Prober interface {
	Name() string
	// Probe finds out whether a push would be taken, without one. The error names the remedy.
	Probe(ctx context.Context) error
}

// Server checks a Pyroscope server.
func Server(p Prober) Check {
	return Check{"pyroscope", p.Name(), func(ctx context.Context) []Finding {
		if err := p.Probe(ctx); err != nil {
			what, remedy, found := cutLast(err.Error(), ": ")
			if !found {
				what, remedy = err.Error(), "curl -v the URL from this machine"
			}
			return one(Degraded, what+"; profiles wait in the store", remedy)
		}
		return one(OK, "takes pushes", "")
	}}
}

// Failed is a check whose very preparation failed. The error names the remedy after its last colon.
func Failed(area, name string, err error) Check {
	return Check{area, name, func(context.Context) []Finding {
		what, remedy, found := cutLast(err.Error(), ": ")
		if !found {
			what, remedy = err.Error(), "stoker config show"
		}
		return one(Broken, what, remedy)
	}}
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Listen checks the address of the web page; where the agent runs it is the agent's.
func Listen(addr string, agentRuns bool) Check {
	return Check{"web", addr, func(context.Context) []Finding {
		if agentRuns {
			return one(OK, "the agent's", "")
		}
		network, at := "tcp", addr
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			if _, err := os.Stat(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return one(Broken, err.Error(), "name another place: web.listen")
			}
			return one(OK, "free", "")
		}
		l, err := net.Listen(network, at)
		if err != nil {
			return one(Broken, err.Error(), "choose another: web.listen (ss -ltnp shows who has it)")
		}
		l.Close()
		return one(OK, "free", "")
	}}
}
