// Demo shows stoker on real containers: it starts a private containerd, makes an image without any registry, runs a few
// containers that do different work, runs the agent on them with a store and a web UI of its own, and prints a table until
// Ctrl-C or DEMO_SECONDS have passed. It leaves nothing behind. `make demo` builds and runs it as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

const imageRef = "localhost/demo:1"

// containers are what the demo runs. The labels are what compose and nerdctl would write, so that the UI has something to
// filter by.
var containers = []containerdtest.Spec{
	{ID: "shop", Args: []string{"/" + workload.Shop},
		Labels: map[string]string{"nerdctl/name": "shop", "com.docker.compose.project": "store", "com.docker.compose.service": "shop"}},
	{ID: "render", Args: []string{"/" + workload.Render},
		Labels: map[string]string{"nerdctl/name": "render", "stoker.service": "render"}},
	{ID: "backup", Args: []string{"/" + workload.Backup}, Labels: map[string]string{"nerdctl/name": "backup"}},
	{ID: "idle", Args: []string{"/" + workload.Idle}, Labels: map[string]string{"nerdctl/name": "idle"}},
}

func main() {
	agent := flag.String("agent", "bin/stoker", "the built program")
	flag.Parse()
	// Ctrl-C reaches us and nobody else: containerd and the agent are in process groups of their own.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// When whoever started us is gone we clean up as well.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "demo: ask for a signal when the parent ends:", err)
	}
	if err := run(ctx, *agent); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, agent string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it runs containers and loads BPF programs, so it needs root: sudo -E make demo")
	}
	agent, err = filepath.Abs(agent)
	if err != nil {
		return err
	}
	listen := os.Getenv("DEMO_LISTEN")
	if listen == "" {
		listen = "127.0.0.1:4041"
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("the address of the web UI: %w; choose another: DEMO_LISTEN=127.0.0.1:5050 make demo", err)
	}
	l.Close()
	if s := os.Getenv("DEMO_SECONDS"); s != "" {
		seconds, err := strconv.Atoi(s)
		if err != nil || seconds < 1 {
			return fmt.Errorf("DEMO_SECONDS is %q; it is a number of seconds, at least 1", s)
		}
		// Counted from the first table: how long preparations take is not what was asked for.
		return demo(ctx, agent, listen, time.Duration(seconds)*time.Second)
	}
	return demo(ctx, agent, listen, 0)
}

// demo runs until ctx ends or, if length is not 0, for that long. Whatever happens, it takes down what it put up.
func demo(ctx context.Context, agent, listen string, length time.Duration) (err error) {
	dir, err := os.MkdirTemp("", "stoker-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say("building the programs that the containers run")
	programs, err := workload.New(dir)
	if err != nil {
		return err
	}
	files, err := programs.Files(workload.Shop, workload.Render, workload.Backup, workload.Idle)
	if err != nil {
		return err
	}
	image := containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{}}
	for in, host := range files {
		image.Files[in] = containerdtest.Host(host)
	}

	say("starting a private containerd below %s", dir)
	home := filepath.Join(dir, "containerd")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	d, err := containerdtest.New(ctx, home)
	if err != nil {
		return ended(ctx, err)
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if err := d.Image(image); err != nil {
		return err
	}

	say("starting stoker")
	config := filepath.Join(dir, "stoker.yaml")
	text := fmt.Sprintf(`# The agent of the demo: only the private containerd, everything else as it is by default.
sampling: {window: 5s}
targets: [{image: %q}, {exclude: true}]
store: {path: %s}
web: {listen: %q}
socket: %s
runtimes: {containerd: {address: %s}, docker: {address: off}, hook: {socket: off}}
`, imageRef, filepath.Join(dir, "profiles.db"), listen, filepath.Join(dir, "stoker.sock"), d.Socket())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	logPath := filepath.Join(dir, "stoker.log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(agent, "run", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	running := true
	defer func() {
		if !running {
			return
		}
		// As systemd would: SIGTERM, and the last window is written before it ends.
		err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
		select {
		case e := <-died:
			if e != nil {
				err = errors.Join(err, fmt.Errorf("stoker ended with %w; its log:\n%s", e, lastLines(logPath)))
			}
		case <-time.After(30 * time.Second):
			err = errors.Join(err, errors.New("stoker did not end within 30 s of SIGTERM"), cmd.Process.Kill())
			<-died
		}
	}()
	if err := answers(ctx, listen, died); err != nil {
		if ctx.Err() == nil {
			running = cmd.ProcessState == nil
			err = fmt.Errorf("%w; its log:\n%s", err, lastLines(logPath))
		}
		return ended(ctx, err)
	}

	for _, s := range containers {
		s.Image = imageRef
		say("starting container %s", s.ID)
		if _, err := d.Run(ctx, s); err != nil {
			return ended(ctx, err)
		}
	}
	fmt.Printf("\nOpen http://%s in a browser. Every command works on this agent too, for example:\n", listen)
	fmt.Printf("  %s record render -d 10s -o flame.html --config %s\n\n", agent, config)

	var over <-chan time.Time
	if length > 0 {
		over = time.After(length)
	} else {
		fmt.Println("Ctrl-C ends the demo.")
	}
	// The first table when the first window is over; then one per window.
	for tick := time.Tick(5 * time.Second); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case e := <-died:
			running = false
			return fmt.Errorf("stoker ended by itself: %v; its log:\n%s", e, lastLines(logPath))
		case <-tick:
			if err := table(ctx, agent, config); err != nil {
				return ended(ctx, err)
			}
		}
	}
}

// table prints what `stoker ps` and `stoker top` say now.
func table(ctx context.Context, agent, config string) error {
	out, err := exec.CommandContext(ctx, agent, "top", "--once", "--config", config).CombinedOutput()
	if err != nil {
		return fmt.Errorf("stoker top: %w: %s", err, out)
	}
	fmt.Printf("%s\n%s\n", time.Now().Format(time.TimeOnly), out)
	return nil
}

// answers waits until the agent's web address answers.
func answers(ctx context.Context, listen string, died <-chan error) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		r, err := http.Get("http://" + listen + "/healthz")
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
			r.Body.Close()
			if err == nil && r.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-died:
			return fmt.Errorf("stoker ended at once: %v", e)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("stoker does not answer at http://%s/healthz: %v", listen, err)
		}
	}
}

// ended turns the error of something that was cut short by Ctrl-C into success.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func say(format string, args ...any) { fmt.Printf("demo: "+format+"\n", args...) }

// lastLines returns the end of a log.
func lastLines(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
