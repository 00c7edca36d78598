// Package workload builds programs of known truth: what share of CPU time is spent in which function, and by which calls,
// is fixed by their source. The end-to-end tests, the demo and the benchmark put them into containers and compare what
// stoker says with it. All but those that say so have frame pointers, and all but Swap and Calls no libraries, so that an image
// needs nothing but them.
package workload

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Programs. What each does is said at the top of its source.
const (
	SharesC    = "shares-c"    // leaf_sixty, leaf_thirty, leaf_ten
	SharesPIE  = "shares-pie"  // the same at an address that differs with each start
	SharesCXX  = "shares-cxx"  // the same in C++, with names that need demangling
	SharesGo   = "shares-go"   // the same in Go, one function inlined
	SharesOmit = "shares-omit" // SharesC as distributions build: -O2, without frame pointers
	Stripped   = "stripped"    // SharesC without symbols; Unstripped is the same build with debug information
	Unstripped = "unstripped"  // of which a debug file can be made
	Calls      = "calls"       // without frame pointers, with the C library of this machine in the middle of its stacks
	DeepOmit   = "deep-omit"   // Deep without frame pointers
	Idle       = "idle"        // sleeps
	Nothing    = "nothing"     // ends at once
	Now        = "now"         // now PROGRAM [ARGUMENT…]: prints the time and becomes the program
	Burn       = "burn"        // burn MILLISECONDS [NUMBER]
	Spawn      = "spawn"       // spawn COUNT PARALLEL PROGRAM [ARGUMENT…]
	Kernel     = "kernel"      // time in system calls
	Deep       = "deep"        // deep FRAMES
	Shop       = "shop"        // for the demo: a Go service, half a CPU
	Render     = "render"      // for the demo: a C++ renderer, one CPU
	Backup     = "backup"      // for the demo: a C program that also waits for the kernel, a fifth of a CPU
	As         = "as"          // as ID PROGRAM [ARGUMENT…]: becomes the program, as another user
	Attack     = "attack"      // attack HOW: a container that means harm
	Swap       = "swap"        // swap SECONDS: dlopen, dlclose at one address; Files adds its libraries
	libRed     = "libred.so"
	libBlue    = "libblue.so"
)

// StrippedBuildID is the build id of Stripped and Unstripped, in hex.
const StrippedBuildID = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e"

//go:embed src
var sources embed.FS

// -O1 with the calls kept as they are written: a sibling call would take a frame out of the known stack.
var cflags = []string{"-g", "-O1", "-Wall", "-Werror", "-fno-omit-frame-pointer",
	"-fno-optimize-sibling-calls", "-fno-inline-functions-called-once"}

// omit builds as distributions do.
var omit = []string{"-g0", "-O2", "-fomit-frame-pointer", "-DNO_FRAMES"}

// how says, for each program, which compiler with which arguments makes it, run in the directory of the sources.
var how = map[string][]string{
	SharesC:    {"gcc", "-static", "shares.c"},
	SharesPIE:  {"gcc", "-static-pie", "-fPIE", "shares.c"},
	SharesCXX:  {"g++", "-static", "shares.cc"},
	SharesOmit: append([]string{"gcc", "-static", "shares.c"}, omit...),
	Stripped:   {"gcc", "-static", "-Wl,--build-id=0x" + StrippedBuildID, "-s", "shares.c"},
	Unstripped: {"gcc", "-static", "-Wl,--build-id=0x" + StrippedBuildID, "shares.c"},
	Calls:      append([]string{"gcc", "calls.c"}, omit...),
	DeepOmit:   append([]string{"gcc", "-static", "deep.c"}, omit...),
	Idle:       {"gcc", "-static", "idle.c"},
	Nothing:    {"gcc", "-static", "nothing.c"},
	Now:        {"gcc", "-static", "now.c"},
	Burn:       {"gcc", "-static", "burn.c"},
	Spawn:      {"gcc", "-static", "spawn.c"},
	Kernel:     {"gcc", "-static", "kernel.c"},
	Deep:       {"gcc", "-static", "deep.c"},
	Backup:     {"gcc", "-static", "-O2", "backup.c"},
	Render:     {"g++", "-static", "-O2", "render.cc"},
	As:         {"gcc", "-static", "as.c"},
	Attack:     {"gcc", "-static", "attack.c"},
	Swap:       {"gcc", "swap.c"},
	libRed:     {"gcc", "-shared", "-fPIC", "-DNAME=plugin_red_work", "-Wl,-soname,plugin", "plugin.c"},
	libBlue:    {"gcc", "-shared", "-fPIC", "-DNAME=plugin_blue_work", "-Wl,-soname,plugin", "plugin.c"},
}

// goPackages are the programs in Go: the folder beside this file.
var goPackages = map[string]string{SharesGo: "gospin", Shop: "shop"}

// A Builder builds programs into one directory, each once. Safe for concurrent use. The zero value is not valid: use New.
type Builder struct {
	dir   string
	mu    sync.Mutex // protects built; held while building, so that two callers do not build the same program
	built map[string]string
}

// New returns a Builder that writes into dir, which has to exist. The directory, and removing it, is the caller's.
func New(dir string) (*Builder, error) {
	err := fs.WalkDir(sources, "src", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dir, path), 0o755)
		}
		text, err := sources.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), text, 0o644)
	})
	if err != nil {
		return nil, fmt.Errorf("write the sources of the workloads: %w", err)
	}
	return &Builder{dir: dir, built: map[string]string{}}, nil
}

// Build returns the path of the named program, and builds it if this Builder has not yet.
func (b *Builder) Build(name string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if path, ok := b.built[name]; ok {
		return path, nil
	}
	out := filepath.Join(b.dir, name)
	var cmd *exec.Cmd
	if pkg, ok := goPackages[name]; ok {
		cmd = exec.Command("go", "build", "-o", out, "github.com/stoker-profiler/stoker/test/workload/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	} else {
		args, ok := how[name]
		if !ok {
			return "", fmt.Errorf("build workload %q: there is no such program", name)
		}
		cmd = exec.Command(args[0], append(append(append([]string(nil), cflags...), "-o", out), args[1:]...)...)
		cmd.Dir = filepath.Join(b.dir, "src")
		if name == Swap {
			cmd.Args = append(cmd.Args, "-ldl")
		}
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		hint := ""
		if errors.Is(err, exec.ErrNotFound) {
			hint = "; run: packaging/setup.sh demo"
		}
		return "", fmt.Errorf("build workload %s with %v: %w: %s%s", name, cmd.Args, err, text, hint)
	}
	b.built[name] = out
	return out, nil
}

// Files builds the named programs and returns where they belong in an image ("/shares-c") and where they are now.
func (b *Builder) Files(names ...string) (map[string]string, error) {
	files := map[string]string{}
	for _, n := range names {
		path, err := b.Build(n)
		if err != nil {
			return nil, err
		}
		files["/"+n] = path
		if n == Swap {
			for name, out := range map[string]string{libRed: "/lib/libred.so", libBlue: "/lib/libblue.so"} {
				if files[out], err = b.Build(name); err != nil {
					return nil, err
				}
			}
		}
		if n == Swap || n == Calls {
			if err := libraries(files); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// libraries adds the C library and the dynamic linker of this machine.
func libraries(files map[string]string) error {
	for _, lib := range []string{"libc.so.6", "ld-linux-x86-64.so.2"} {
		path, err := exec.Command("gcc", "-print-file-name="+lib).Output()
		if err != nil {
			return fmt.Errorf("ask gcc where %s is: %w", lib, err)
		}
		files["/lib64/"+lib] = strings.TrimSpace(string(path))
	}
	return nil
}
