package node

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// A program without V8, this test's own, has no layout, and says so quickly.
func TestNoV8(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if l, err := ReadLayout(f, st.Size()); l != nil || !errors.Is(err, ErrNotV8) {
		t.Errorf("got %v, %v", l, err)
	}
	text := []byte("#!/bin/sh\n")
	if _, err := ReadLayout(bytes.NewReader(text), int64(len(text))); !errors.Is(err, symbol.ErrNotELF) {
		t.Errorf("a script: %v", err)
	}
}

func TestUnknownVersion(t *testing.T) {
	if v := versionOf(Version{Major: 15, Minor: 0}); v != nil {
		t.Errorf("15.0 is taken for %+v", v)
	}
	seen := map[[2]int]bool{}
	for _, v := range versions {
		if k := [2]int{v.major, v.minor}; seen[k] {
			t.Errorf("%v is there twice", k)
		} else {
			seen[k] = true
		}
	}
}
