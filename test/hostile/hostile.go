// Package hostile has servers that sit where a container engine's socket is expected, and mean harm: for the tests of sources.
// Manners are whole connections, for any protocol; GRPC is a server that speaks gRPC well and answers with bytes of the test's
// choice. Everything it starts ends with the test.
package hostile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Socket returns a path that is short enough for a socket, in a directory of the test's own.
func Socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-hostile-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// Manner is how a server behaves on each connection. It returns when the other side has gone away, or when it has done its harm.
type Manner struct {
	Name  string
	Serve func(net.Conn)
}

// preface is how a server of HTTP/2 begins: an empty frame of settings.
const preface = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// Manners are the connections that no engine makes.
func Manners() []Manner {
	after := func(serve func(c net.Conn)) func(net.Conn) { // of a question
		return func(c net.Conn) {
			if _, err := c.Read(make([]byte, 4096)); err == nil {
				serve(c)
			}
		}
	}
	write := func(w io.Writer, s string, times int) {
		for range times {
			if _, err := io.WriteString(w, s); err != nil {
				return
			}
		}
	}
	http := "HTTP/1.1 200 OK\r\nApi-Version: 1.44\r\nContent-Type: application/json\r\n"
	mega := strings.Repeat("a", 1<<20)
	return []Manner{
		{"hangs up", func(net.Conn) {}},
		{"silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }},
		{"garbage", func(c net.Conn) { write(c, "\x00\xff garbage \x1b[2J", 4096) }},
		{"garbage, 100 MB", func(c net.Conn) { write(c, mega, 100) }},
		{"half-closed", after(func(c net.Conn) {
			_ = c.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		})},
		{"half an answer", after(func(c net.Conn) { write(c, http+"Content-Length: 1000\r\n\r\n[", 1) })},
		{"answer of 100 MB", after(func(c net.Conn) { write(c, http+"\r\n[{\"Id\":\"", 1); write(c, mega, 100) })},
		{"header without end", after(func(c net.Conn) { write(c, http, 1); write(c, "X-A: "+mega[:1000]+"\r\n", 100_000) })},
		{"drop by drop", after(func(c net.Conn) {
			write(c, http+"\r\n", 1)
			for {
				if _, err := io.WriteString(c, "["); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})},
		{"HTTP/2, then garbage", func(c net.Conn) { write(c, preface, 1); write(c, "\xff\xfe\xfd", 4096) }},
		{"HTTP/2, then nothing", func(c net.Conn) { write(c, preface, 1); _, _ = io.Copy(io.Discard, c) }},
		{"HTTP/2, settings without end", func(c net.Conn) {
			go io.Copy(io.Discard, c) // the answers: gRPC takes five seconds to hang up where nobody reads them
			write(c, preface, 1_000_000)
		}},
		{"HTTP/2, pings without end", func(c net.Conn) {
			go io.Copy(io.Discard, c)
			write(c, preface, 1)
			write(c, "\x00\x00\x08\x06\x00\x00\x00\x00\x00pingping", 1_000_000)
		}},
		{"HTTP/2, frame of 16 MB", func(c net.Conn) { write(c, preface+"\xff\xff\xff\x00\x00\x00\x00\x00\x01", 1); write(c, mega, 16) }},
	}
}

// Listen serves each connection at path in a goroutine of its own until the test ends.
func Listen(t testing.TB, path string, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // protects open
	open := map[net.Conn]bool{}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			serving.Go(func() {
				defer c.Close()
				serve(c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // no more connections; those that are open are ended until all have returned
		done := make(chan struct{})
		go func() { serving.Wait(); close(done) }()
		for {
			mu.Lock()
			for c := range open {
				_ = c.Close()
			}
			mu.Unlock()
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
}

// raw lets messages of gRPC be bytes.
type raw struct{}

var _ encoding.CodecV2 = raw{}

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (raw) Name() string { return "proto" }

// GRPC serves gRPC at path until the test ends: answer is called for each call, with its last name ("ListContainers"), and sends as
// many messages as it likes. It may be called at the same time.
func GRPC(t testing.TB, path string, answer func(ctx context.Context, method string, send func([]byte) error) error) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.MaxSendMsgSize(1<<30), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		var question []byte
		if err := stream.RecvMsg(&question); err != nil {
			return err
		}
		return answer(stream.Context(), method[strings.LastIndexByte(method, '/')+1:], func(b []byte) error { return stream.SendMsg(b) })
	}))
	go s.Serve(l) //nolint:errcheck // it ends with Stop
	t.Cleanup(s.Stop)
}

// Run runs a source of runtime/internal/follow until done, then ends it. It fails when the heap has grown by more than limit bytes
// at any time, when done is not true within a minute, when the source does not end, or when it leaves goroutines behind. What the
// test serves is in the same heap.
func Run(t *testing.T, s container.Source, emit func(container.Event), limit uint64, done func() bool) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // what is garbage counts for little
	runtime.GC()
	var st runtime.MemStats
	runtime.ReadMemStats(&st)
	before, peak := st.HeapAlloc, uint64(0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, emit) }()
	ok := false
	for deadline := time.Now().Add(time.Minute); !ok && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		ok = done()
		runtime.ReadMemStats(&st)
		peak = max(peak, st.HeapAlloc)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("Run does not end\n%s", stacks())
	}
	if !ok {
		t.Errorf("waited in vain; status %+v", s.(container.StatusReporter).Status())
	}
	grown := peak - min(peak, before)
	t.Logf("the heap grew by %.1f MB", float64(grown)/(1<<20))
	if grown > limit {
		t.Errorf("the heap grew by %d MB, more than %d", grown>>20, limit>>20)
	}
	for deadline := time.Now().Add(30 * time.Second); bytes.Contains(stacks(), []byte("/runtime/internal/follow.")); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("goroutines are left behind\n%s", stacks())
		}
	}
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}
