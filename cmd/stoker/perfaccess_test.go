package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The level is lowered only where that helps, and put back only where nobody else has changed it since.
func TestPerfAccessChangesTheLevelOnlyForAsLongAsItMust(t *testing.T) {
	for _, c := range []struct {
		name                  string
		level                 string
		deniedAbove           int // levels that CAP_PERFMON does not pass; -1: it never passes
		meanwhile             string
		lowered, back, atLast string
	}{
		{"Debian", "3", 2, "", "2", "3", "3"},
		{"Ubuntu, where CAP_PERFMON passes", "4", 9, "", "4", "4", "4"},
		{"the kernel's default", "2", 2, "", "2", "2", "2"},
		{"open to all", "-1", 2, "", "-1", "-1", "-1"},
		{"the operator has changed it meanwhile", "3", 2, "1", "2", "1", "1"},
		{"it is not the level", "3", -1, "", "3", "3", "3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			p := perfAccess{level: filepath.Join(dir, "level"), state: filepath.Join(dir, "state")}
			p.denied = func() (bool, error) {
				level, err := readLevel(p.level)
				return c.deniedAbove < 0 || level > c.deniedAbove, err
			}
			level := func() string {
				text, err := os.ReadFile(p.level)
				if err != nil {
					t.Fatal(err)
				}
				return strings.TrimSpace(string(text))
			}
			if err := os.WriteFile(p.level, []byte(c.level+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := p.restore(); err != nil || level() != c.level {
				t.Errorf("restore without lower: %s, %v", level(), err)
			}
			if _, err := p.lower(); err != nil || level() != c.lowered {
				t.Errorf("lower: %s, %v; want %s", level(), err, c.lowered)
			}
			if _, err := p.lower(); err != nil || level() != c.lowered { // after a start that failed half way
				t.Errorf("lower again: %s, %v; want %s", level(), err, c.lowered)
			}
			if c.meanwhile != "" {
				if err := os.WriteFile(p.level, []byte(c.meanwhile+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.restore(); err != nil || level() != c.back {
				t.Errorf("restore: %s, %v; want %s", level(), err, c.back)
			}
			if _, err := p.restore(); err != nil || level() != c.atLast {
				t.Errorf("restore again: %s, %v", level(), err)
			}
			if _, err := os.Stat(p.state); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the state is left: %v", err)
			}
		})
	}
}

// Without a place to remember the old value nothing is changed.
func TestPerfAccessChangesNothingThatItCannotUndo(t *testing.T) {
	dir := t.TempDir()
	p := perfAccess{level: filepath.Join(dir, "level"), state: filepath.Join(dir, "none", "state"), denied: func() (bool, error) { return true, nil }}
	if err := os.WriteFile(p.level, []byte("3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.lower(); err == nil {
		t.Error("no error")
	}
	if level, err := readLevel(p.level); level != 3 {
		t.Errorf("the level is %d, %v", level, err)
	}
}
