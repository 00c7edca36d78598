package python

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var lineFormats = map[string]lineFormat{
	"3.8": linesNotab, "3.9": linesNotab, "3.10": linesRanges, "3.11": linesLocations, "3.12": linesLocations, "3.13": linesLocations,
}

type lineGolden struct {
	first int32
	table []byte
	lines map[uint32]int // of each instruction
	size  uint32
}

// readLines reads what testdata/lines.py printed under one version.
func readLines(t testing.TB, version string) []lineGolden {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "lines-"+version+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []lineGolden
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) != 4 {
			t.Fatalf("%s: row %q has %d fields, want 4", f.Name(), s.Text(), len(fields))
		}
		first, err := strconv.Atoi(fields[0])
		if err != nil {
			t.Fatal(err)
		}
		table, err := hex.DecodeString(strings.TrimPrefix(fields[1], "-"))
		if err != nil {
			t.Fatal(err)
		}
		size, err := strconv.Atoi(fields[3])
		if err != nil {
			t.Fatal(err)
		}
		g := lineGolden{first: int32(first), table: table, lines: map[uint32]int{}, size: uint32(size)}
		changes := map[uint32]int{}
		for _, c := range strings.Split(fields[2], ",") {
			var at uint32
			var line int
			if _, err := fmt.Sscanf(c, "%d:%d", &at, &line); err != nil {
				t.Fatalf("%s: %q: %v", f.Name(), c, err)
			}
			changes[at] = line
		}
		line := 0
		for at := uint32(0); at < g.size; at += 2 {
			if l, ok := changes[at]; ok {
				line = l
			}
			g.lines[at] = line
		}
		all = append(all, g)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLinesAreThoseOfTheInterpreter: of each instruction of a program that has all shapes of code, in every version.
func TestLinesAreThoseOfTheInterpreter(t *testing.T) {
	for version, format := range lineFormats {
		t.Run(version, func(t *testing.T) {
			golden := readLines(t, version)
			if len(golden) < 10 {
				t.Fatalf("%d code objects, want at least 10", len(golden))
			}
			instructions := 0
			for _, g := range golden {
				for at, want := range g.lines {
					instructions++
					got, err := format.line(g.table, g.first, at)
					if err != nil || got != want {
						t.Errorf("code at line %d, offset %d: line %d, %v; want %d", g.first, at, got, err, want)
					}
				}
				if format == linesNotab { // its last line has no end
					continue
				}
				if got, err := format.line(g.table, g.first, g.size); err == nil {
					t.Errorf("code at line %d, past its end: line %d, want an error", g.first, got)
				}
			}
			t.Logf("%d code objects, %d instructions", len(golden), instructions)
		})
	}
}

func TestForgedLineTables(t *testing.T) {
	for _, c := range []struct {
		name   string
		format lineFormat
		table  []byte
		first  int32
		at     uint32
		err    string
	}{
		{"no entry begins", linesLocations, []byte{0x01}, 1, 0, "top bit"},
		{"a delta without end", linesLocations, []byte{0x80 | 13<<3, 0x40}, 1, 0, "no end"},
		{"a delta of 42 bits", linesLocations, []byte{0x80 | 13<<3, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x3f}, 1, 0, "no end"},
		{"empty", linesRanges, nil, 1, 0, "ends before"},
		{"half a pair", linesRanges, []byte{2}, 1, 0, "ends before"},
		{"a format that is none", 0, nil, 1, 0, "no such format"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.format.line(c.table, c.first, c.at)
			if err == nil || !strings.Contains(err.Error(), c.err) || got != NoLine {
				t.Errorf("line %d, error %v; want no line and %q", got, err, c.err)
			}
		})
	}
	if got := lineOfNotab([]byte{0, 0x80}, 1, 0); got != NoLine {
		t.Errorf("a line below 1 is %d, want none", got)
	}
}

func FuzzLines(f *testing.F) {
	for version, format := range lineFormats {
		for _, g := range readLines(f, version) {
			f.Add(uint8(format), g.table, g.first, g.size/2)
		}
	}
	f.Fuzz(func(t *testing.T, format uint8, table []byte, first int32, at uint32) {
		line, err := lineFormat(format).line(table, first, at)
		if line < 0 || (err != nil && line != NoLine) {
			t.Errorf("line %d, error %v", line, err)
		}
	})
}
