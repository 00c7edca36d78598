// Package browsertest drives a headless Chromium for tests of pages: real clicks and keys, a phone's width, dark mode,
// screenshots. It speaks the DevTools protocol over the browser's pipe (--remote-debugging-pipe), so there is no port and no
// WebSocket. Only tests may import it. A Browser and its Pages belong to one test; the methods fail that test themselves.
package browsertest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long any one step may take on a machine that is busy with other tests.
const patience = 60 * time.Second

// Browser is a running Chromium with a profile directory of its own.
type Browser struct {
	t       testing.TB
	in      *os.File
	mu      sync.Mutex
	nextID  int
	waiting map[int]chan reply
	events  func(sessionID, method string, params json.RawMessage)
	stderr  bytes.Buffer
	dead    chan struct{} // closed when the pipe ended
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// Start runs Chromium until the test ends. The test fails if there is none: `apt-get install chromium` brings it.
func Start(t testing.TB) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("find a browser: %v: install it with apt-get install chromium", err)
	}
	toBrowser, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, fromBrowser, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b := &Browser{t: t, in: in, waiting: map[int]chan reply{}, dead: make(chan struct{})}
	dir, err := os.MkdirTemp("", "chromium")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars",
		"--remote-debugging-pipe", "--user-data-dir="+dir, "about:blank")
	cmd.ExtraFiles = []*os.File{toBrowser, fromBrowser} // the protocol's descriptors 3 and 4
	cmd.Stderr = &b.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	toBrowser.Close()
	fromBrowser.Close()
	go b.read(out)
	t.Cleanup(func() {
		// The group is the browser's own: it was made above.
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("end the browser: %v", err)
		}
		_ = cmd.Wait() // "signal: killed" is what was asked for
		in.Close()
		<-b.dead
		out.Close()
		var err error
		for range 50 { // helpers of the browser may still write for a moment
			if err = os.RemoveAll(dir); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("remove the browser's directory: %v", err)
	})
	return b
}

func (b *Browser) read(out *os.File) {
	defer close(b.dead)
	r := bufio.NewReader(out)
	for {
		raw, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID        int
			SessionID string
			Method    string
			Params    json.RawMessage
			reply
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
			continue // not for us
		}
		b.mu.Lock()
		c, events := b.waiting[m.ID], b.events
		delete(b.waiting, m.ID)
		b.mu.Unlock()
		if c != nil {
			c <- m.reply
		} else if m.Method != "" && events != nil {
			events(m.SessionID, m.Method, m.Params)
		}
	}
}

// call sends one command and decodes its result into result, which may be nil.
func (b *Browser) call(session, method string, params, result any) error {
	b.mu.Lock()
	b.nextID++
	id := b.nextID
	c := make(chan reply, 1)
	b.waiting[id] = c
	raw, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		raw, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err == nil {
		_, err = b.in.Write(append(raw, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case r := <-c:
		if r.Error != nil {
			return fmt.Errorf("%s: %s", method, r.Error.Message)
		}
		if result != nil {
			return json.Unmarshal(r.Result, result)
		}
		return nil
	case <-b.dead:
		return fmt.Errorf("%s: the browser ended: %s", method, b.stderr.String())
	case <-time.After(patience):
		return fmt.Errorf("%s: no answer in %s", method, patience)
	}
}

// Page is one open page.
type Page struct {
	b       *Browser
	session string
	mu      sync.Mutex
	trouble []string
}

// Options say how a page is looked at.
type Options struct {
	Width, Height int  // in CSS pixels
	Dark          bool // prefers-color-scheme: dark
	Phone         bool // touch, and a phone's handling of the viewport
}

// Open opens url and waits until it is loaded.
func (b *Browser) Open(url string, o Options) *Page {
	b.t.Helper()
	p := &Page{b: b}
	var target struct{ TargetID string }
	b.must("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.must("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	p.session = attached.SessionID
	b.mu.Lock()
	before := b.events
	b.events = func(session, method string, params json.RawMessage) {
		if session == p.session {
			p.event(method, params)
		} else if before != nil {
			before(session, method, params)
		}
	}
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.must(domain+".enable", nil, nil)
	}
	p.must("Emulation.setDeviceMetricsOverride", map[string]any{"width": o.Width, "height": o.Height, "deviceScaleFactor": 1, "mobile": o.Phone}, nil)
	p.must("Emulation.setTouchEmulationEnabled", map[string]any{"enabled": o.Phone}, nil)
	scheme := "light"
	if o.Dark {
		scheme = "dark"
	}
	p.must("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	var nav struct{ ErrorText string }
	p.must("Page.navigate", map[string]any{"url": url}, &nav)
	if nav.ErrorText != "" {
		b.t.Fatalf("open %s: %s", url, nav.ErrorText)
	}
	p.Wait(`document.readyState === "complete" && location.href !== "about:blank"`)
	return p
}

// event notes what a page without faults does not do: errors, refused resources, requests to another host.
func (p *Page) event(method string, params json.RawMessage) {
	note := ""
	switch method {
	case "Runtime.exceptionThrown":
		note = "exception: " + string(params)
	case "Log.entryAdded":
		var e struct {
			Entry struct{ Level, Text, URL string }
		}
		if json.Unmarshal(params, &e) == nil && e.Entry.Level == "error" {
			note = e.Entry.Text + " " + e.Entry.URL
		}
	case "Network.requestWillBeSent":
		var e struct{ Request struct{ URL string } }
		if json.Unmarshal(params, &e) != nil {
			return
		}
		for _, own := range []string{"file:", "data:", "blob:", "http://127.0.0.1:", "http://localhost:"} {
			if strings.HasPrefix(e.Request.URL, own) {
				return
			}
		}
		note = "asks another host: " + e.Request.URL
	}
	if note != "" {
		p.mu.Lock()
		p.trouble = append(p.trouble, note)
		p.mu.Unlock()
	}
}

// Trouble returns the errors that the page logged and the requests it made to other hosts: none, if all is well.
func (p *Page) Trouble() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.trouble...)
}

func (b *Browser) must(session, method string, params, result any) {
	b.t.Helper()
	if err := b.call(session, method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

func (p *Page) must(method string, params, result any) {
	p.b.t.Helper()
	p.b.must(p.session, method, params, result)
}

// Eval evaluates a JavaScript expression and decodes its value into result, which may be nil. It works on pages whose
// policy forbids eval.
func (p *Page) Eval(expression string, result any) {
	p.b.t.Helper()
	var r struct {
		Result struct {
			Value json.RawMessage
		}
		ExceptionDetails json.RawMessage
	}
	p.must("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if r.ExceptionDetails != nil {
		p.b.t.Fatalf("evaluate %s: %s", expression, r.ExceptionDetails)
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal(r.Result.Value, result); err != nil {
		p.b.t.Fatalf("evaluate %s: %v in %q", expression, err, r.Result.Value)
	}
}

// Text evaluates an expression that is a string.
func (p *Page) Text(expression string) (s string) {
	p.b.t.Helper()
	p.Eval("String("+expression+")", &s)
	return s
}

// Wait waits until an expression is true.
func (p *Page) Wait(expression string) {
	p.b.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var ok bool
		p.Eval("Boolean("+expression+")", &ok)
		if ok {
			return
		}
		if time.Now().After(end) {
			p.b.t.Fatalf("the page never got to: %s; errors: %q", expression, p.Trouble())
		}
	}
}

// Click presses the mouse in the middle of the element that an expression yields.
func (p *Page) Click(element string) {
	p.b.t.Helper()
	var at struct{ X, Y float64 }
	p.Eval(`(() => { const e = `+element+`; e.scrollIntoView({block: "center", behavior: "instant"}); const r = e.getBoundingClientRect();
		return {X: r.x + r.width / 2, Y: r.y + r.height / 2}; })()`, &at)
	for _, what := range []string{"mouseMoved", "mousePressed", "mouseReleased"} {
		p.must("Input.dispatchMouseEvent", map[string]any{"type": what, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
	}
}

// Type types text where the focus is.
func (p *Page) Type(text string) {
	p.b.t.Helper()
	p.must("Input.insertText", map[string]any{"text": text}, nil)
}

// Key presses a key by its DOM name: "Escape", "ArrowDown", "Enter", "/".
func (p *Page) Key(name string) {
	p.b.t.Helper()
	codes := map[string]int{"Escape": 27, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
	down := map[string]any{"type": "keyDown", "key": name, "windowsVirtualKeyCode": codes[name]}
	if len(name) == 1 {
		down["text"] = name
	}
	p.must("Input.dispatchKeyEvent", down, nil)
	p.must("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": name, "windowsVirtualKeyCode": codes[name]}, nil)
}

// Screenshot returns a PNG of what the window shows.
func (p *Page) Screenshot() []byte {
	p.b.t.Helper()
	var shot struct{ Data string }
	p.must("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		p.b.t.Fatal(err)
	}
	return png
}
