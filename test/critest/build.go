package critest

import (
	"bytes"
	"context"
	_ "embed" // for the module of containerd
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The two files of a Go module whose tools are containerd's programs. They do not have their usual names, or the go command
// would take this directory for that module.
var (
	//go:embed containerd.mod
	goMod []byte
	//go:embed containerd.sum
	goSum []byte
)

// programs are what a containerd consists of.
var programs = []string{"containerd", "ctr", "containerd-shim-runc-v2"}

// build makes containerd's programs and links them into dir. The go command keeps what it built in its own cache: the first call
// on a machine takes up to two minutes and needs a module proxy, all others take a second.
func build(ctx context.Context, dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("build containerd: %w", err)
		}
	}()
	// A directory of its own, gone when the programs are built: they stay in the cache.
	module, err := os.MkdirTemp("", "stoker-critest-build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(module)) }()
	for name, text := range map[string][]byte{"go.mod": goMod, "go.sum": goSum} {
		if err := os.WriteFile(filepath.Join(module, name), text, 0o644); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, program := range programs {
		// "go tool -n" builds a tool and says where it is instead of running it.
		cmd := exec.CommandContext(ctx, "go", "tool", "-n", program)
		cmd.Dir = module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go tool -n %s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
		}
		if err := os.Symlink(strings.TrimSpace(stdout.String()), filepath.Join(dir, program)); err != nil {
			return err
		}
	}
	return nil
}
