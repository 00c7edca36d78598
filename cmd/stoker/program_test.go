package main

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink/web"
)

// TestMain lets this test binary be the program: it is then stoker, with everything that main does.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_AS_PROGRAM") == "1" {
		main()
	}
	os.Exit(m.Run())
}

// program prepares a run of stoker as a process of its own.
func program(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append([]string{"RUN_AS_PROGRAM=1", "PATH=" + os.Getenv("PATH")}, environ...)
	return cmd
}

// TestProcessExitCodes runs the program itself: what a shell and systemd see.
func TestProcessExitCodes(t *testing.T) {
	a, _, _ := agentApp(t, &fakeBackend{err: &web.Error{Status: http.StatusNotFound, Message: "no container is meant by \"x\"", Remedy: "look at ps"}})
	socket := a.getenv("STOKER_SOCKET")
	dir := t.TempDir()
	file := filepath.Join(dir, "stoker.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args         string
		code         int
		stdout, says string
	}{
		{"", 0, "Usage:", ""},
		{"version", 0, "stoker ", ""},
		{"config check", 0, "ok: " + file, ""},
		{"query --store-path " + filepath.Join(dir, "none.db"), 1, "", "there is no store yet"},
		{"ps --bogus", 2, "", "unknown flag: --bogus"},
		{"run --sampling-frequency fast", 2, "", "is not a whole number"},
		{"record x --socket " + socket, 3, "", "look at ps"},
	} {
		t.Run(c.args, func(t *testing.T) {
			cmd := program(t, []string{"STOKER_CONFIG=" + file}, strings.Fields(c.args)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.says) {
				t.Errorf("exit code %d, want %d; printed %q, said %q", code, c.code, &stdout, &stderr)
			}
			if c.says == "" && stderr.Len() > 0 || c.stdout == "" && stdout.Len() > 0 {
				t.Errorf("printed %q, said %q", &stdout, &stderr)
			}
		})
	}
}

// TestInterrupt: Ctrl-C ends a command that waits, with a word and without a stack trace.
func TestInterrupt(t *testing.T) {
	b := &fakeBackend{hang: make(chan struct{})}
	a, _, _ := agentApp(t, b)
	cmd := program(t, []string{"STOKER_CONFIG=" + a.getenv("STOKER_CONFIG"), "STOKER_SOCKET=" + a.getenv("STOKER_SOCKET")}, "record", "-d", "1h")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-b.hang // the agent is recording
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != exitFailed || stderr.String() != "stoker: interrupted\n" {
		t.Errorf("%v, exit code %d, said %q", err, cmd.ProcessState.ExitCode(), &stderr)
	}
}
