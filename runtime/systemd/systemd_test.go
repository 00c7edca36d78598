package systemd

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/registry"
)

// Units that a pattern names are told of by their cgroups, and described by systemd; others are not.
func TestUnitsAreFoundAndDescribed(t *testing.T) {
	bus := newFakeBus(t)
	started := time.UnixMicro(1_790_000_000_000_000)
	bus.has("nginx.service", map[string]any{
		"Description": "a web server", "InvocationID": []byte("0123456789abcdef"), "ActiveState": "active", "ControlGroup": "/system.slice/nginx.service",
		"MainPID": uint32(4711), "ExecMainStartTimestamp": uint64(started.UnixMicro()), "Environment": []string{"OTEL_SERVICE_NAME=edge", "SECRET=x"},
	})
	b := newBench(t, bus.path, "nginx.service", "app-*.service", "job.service")
	b.unit("/system.slice/nginx.service")
	b.unit("/system.slice/other.service")
	b.unit("/system.slice/nginx.service/worker")
	b.run()
	r := b.Until("nginx.service", "described", func(r registry.Record) bool { return profiled(r) && r.PID != 0 })
	if r.Runtime != "systemd" || r.SystemdUnit != "nginx.service" || r.DisplayName() != "nginx.service" || r.PID != 4711 || !r.StartedAt.Equal(started) ||
		r.Annotations[annotationDescription] != "a web server" || r.Annotations[annotationInvocation] != "30313233343536373839616263646566" ||
		r.Env["OTEL_SERVICE_NAME"] != "edge" || len(r.Env) != 1 || r.User != "" || r.CgroupPath != "/system.slice/nginx.service" {
		t.Errorf("record %+v", r)
	}
	// One that comes later, one of a user, whose manager is not asked.
	b.unit("/system.slice/app-a.service")
	b.Until("app-a.service", "profiled", profiled)
	b.unit("/user.slice/user-1000.slice/user@1000.service/app.slice/job.service")
	if r := b.Until("job.service", "profiled", profiled); r.User != "1000" {
		t.Errorf("a user's unit is %+v", r)
	}
	// It starts again: another run.
	b.remove("/system.slice/nginx.service")
	b.Until("nginx.service", "gone", gone)
	b.unit("/system.slice/nginx.service")
	if again := b.Until("nginx.service", "profiled again", profiled); again.CgroupID == r.CgroupID {
		t.Error("the next run is taken for the one before")
	}
	for _, r := range b.List() {
		if r.ID == "other.service" || strings.Contains(r.ID, "worker") {
			t.Errorf("nobody asked for %s", r.ID)
		}
	}
}

// Patterns change while the source runs.
func TestPatternsChange(t *testing.T) {
	b := newBench(t, filepath.Join(t.TempDir(), "no-bus"))
	b.unit("/system.slice/a.service")
	b.unit("/system.slice/b.service")
	b.run()
	if st := b.Status(); !st.Absent || !strings.Contains(st.Err, "systemd:") {
		t.Errorf("status without patterns: %+v", st)
	}
	b.SetPatterns(Patterns{"a.service"})
	b.Until("a.service", "profiled", profiled)
	b.SetPatterns(Patterns{"b.*"})
	b.Until("b.service", "profiled", profiled)
	b.Until("a.service", "gone", gone)
	b.SetPatterns(nil)
	b.Until("b.service", "gone", gone)
}

// An answer that comes when a unit's pattern is gone, and its record too, does not bring the unit back.
func TestALateAnswerBringsNoUnitBack(t *testing.T) {
	bus := newFakeBus(t)
	bus.has("a.service", map[string]any{"ControlGroup": "/system.slice/a.service", "MainPID": uint32(7), "ActiveState": "active"})
	asked, answer := make(chan struct{}, tries), make(chan struct{})
	bus.mu.Lock()
	bus.serve = func(net.Conn) bool { asked <- struct{}{}; <-answer; return false }
	bus.mu.Unlock()
	b := newBench(t, bus.path, "a.service")
	b.unit("/system.slice/a.service")
	b.run()
	b.Until("a.service", "profiled", profiled)
	<-asked
	b.SetPatterns(Patterns{"b.service"})
	b.Until("a.service", "gone", gone)
	for len(b.List()) > 0 {
		b.WindowEnd()
	}
	close(answer)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b.Source.mu.Lock()
		asking := b.asking
		b.Source.mu.Unlock()
		bus.mu.Lock()
		n := bus.asked
		bus.mu.Unlock()
		if n >= 2 && asking == nil { // both questions are answered
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("asked %d times, %v", n, asking)
		}
	}
	b.unit("/system.slice/b.service") // whatever was to be told before this, was
	b.Until("b.service", "described or not, it is there", profiled)
	if l := b.List(); len(l) != 1 {
		t.Errorf("records %+v", l)
	}
}

// Without a bus, or with one that means harm, units are found all the same, and the status says what is missing.
func TestUnitsAreFoundWithoutAnAnswer(t *testing.T) {
	for name, serve := range map[string]func(net.Conn) bool{
		"silent":  func(c net.Conn) bool { io.Copy(io.Discard, c); return true },
		"garbage": func(c net.Conn) bool { c.Write(bytes.Repeat([]byte{'l', 0xff}, 1<<16)); return true },
		"endless handshake": func(c net.Conn) bool {
			for {
				if _, err := c.Write(bytes.Repeat([]byte("DATA 00\r\n"), 1000)); err != nil {
					return true
				}
			}
		},
		"closed": func(net.Conn) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			bus := newFakeBus(t)
			bus.mu.Lock()
			bus.serve = serve
			bus.mu.Unlock()
			b := newBench(t, bus.path, "a.service")
			b.unit("/system.slice/a.service")
			b.run()
			b.Until("a.service", "profiled", profiled)
			if name == "silent" {
				return // it is given up on after half a minute
			}
			for deadline := time.Now().Add(30 * time.Second); b.Counts()["undescribed"] == 0 || !strings.Contains(b.Status().Err, "not described"); {
				if time.Now().After(deadline) {
					t.Fatalf("status %+v, counts %v", b.Status(), b.Counts())
				}
				time.Sleep(5 * time.Millisecond)
			}
			if !b.Status().Connected {
				t.Errorf("status %+v", b.Status())
			}
		})
	}
}

// What systemd says about another cgroup is not about this one.
func TestAnAnswerAboutAnotherCgroup(t *testing.T) {
	bus := newFakeBus(t)
	bus.has("a.service", map[string]any{"ControlGroup": "/system.slice/elsewhere.service", "MainPID": uint32(1), "ActiveState": "active"})
	b := newBench(t, bus.path, "a.service")
	b.unit("/system.slice/a.service")
	b.run()
	for deadline := time.Now().Add(30 * time.Second); b.Counts()["undescribed"] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("counts %v", b.Counts())
		}
	}
	if r := b.Until("a.service", "profiled", profiled); r.PID != 0 || r.Annotations[annotationDescription] != "" {
		t.Errorf("record %+v", r)
	}
}

// Where systemd does not run, configured units are trouble that the status names.
func TestNoSystemd(t *testing.T) {
	b := newBench(t, filepath.Join(t.TempDir(), "no-bus"), "a.service")
	b.booted = filepath.Join(t.TempDir(), "none")
	b.run()
	if st := b.Status(); st.Connected || st.Absent || !strings.Contains(st.Err, "systemd does not run here") || !strings.Contains(st.Err, "remove the key") {
		t.Errorf("status %+v", st)
	}
}

// No length in a message is taken at its word.
func FuzzGuard(f *testing.F) {
	f.Add([]byte("l\x02\x01\x01\x05\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00abcdefghijklm"), uint8(3))
	f.Add([]byte("l\x02\x01\x01\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff"), uint8(16))
	f.Add([]byte("B\x02\x01\x01\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x08"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		g := &guard{messages: true}
		whole := &guard{messages: true}
		wholeErr := whole.check(b)
		var err error
		for rest := b; len(rest) > 0 && err == nil; {
			n := min(len(rest), int(piece%32)+1)
			err = g.check(rest[:n])
			rest = rest[n:]
		}
		if (err == nil) != (wholeErr == nil) {
			t.Errorf("in pieces: %v, whole: %v", err, wholeErr)
		}
		if g.rest > maxMessageBytes || whole.rest > maxMessageBytes {
			t.Errorf("%d bytes are waited for", max(g.rest, whole.rest))
		}
	})
}
