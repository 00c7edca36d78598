// Command record writes a snapshot of a live thread's stack to a file, for a test of the native unwinder: see
// bpf/unwind/native/replay. It stops the thread for a few milliseconds.
//
//	go run ./bpf/unwind/native/replay/record -o testdata/NAME.snapshot PID [TID]
//
// With -print it prints the frames instead, as our rows give them.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/replay"
)

func main() {
	out := flag.String("o", "", "write the snapshot to this `file`")
	show := flag.Bool("print", false, "print the frames")
	about := flag.String("about", "", "what ran, for people; by default the program's path")
	flag.Parse()
	if flag.NArg() < 1 || flag.NArg() > 2 || *out == "" && !*show {
		fmt.Fprintln(os.Stderr, "usage: record [-print] [-o FILE] [-about TEXT] PID [TID]")
		os.Exit(2)
	}
	if err := record(flag.Args(), *out, *show, *about); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(ids []string, out string, show bool, about string) error {
	pid, err := strconv.Atoi(ids[0])
	if err != nil {
		return fmt.Errorf("read the PID: %w", err)
	}
	tid := pid
	if len(ids) > 1 {
		if tid, err = strconv.Atoi(ids[1]); err != nil {
			return fmt.Errorf("read the TID: %w", err)
		}
	}
	if about == "" {
		if about, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
			return err
		}
	}
	s, err := replay.Record(pid, tid, about)
	if err != nil {
		return err
	}
	if show {
		frames, end, err := s.Walk()
		if err != nil {
			return err
		}
		maps := process.NewMaps(s.Maps)
		for i, f := range frames {
			where := "?"
			if m, ok := maps.Find(f.PC); ok {
				where = fmt.Sprintf("%s+0x%x", filepath.Base(m.Path), m.FileOffset(f.PC))
			}
			fmt.Printf("%3d 0x%016x %s\n", i, f.PC, where)
		}
		fmt.Printf("    %v\n", end)
	}
	if out == "" {
		return nil
	}
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := s.Write(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
