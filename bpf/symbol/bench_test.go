package symbol

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var benchFiles = flag.String("files", "", "comma-separated ELF files to benchmark besides the C library and the go command")

// benchmarkFiles calls f with files of different kinds, opened.
func benchmarkFiles(b *testing.B, f func(b *testing.B, file *os.File, size int64)) {
	files := []string{strings.TrimSpace(run(b, "gcc", "-print-file-name=libc.so.6")), strings.TrimSpace(run(b, "go", "env", "GOROOT")) + "/bin/go"}
	if *benchFiles != "" {
		files = append(files, strings.Split(*benchFiles, ",")...)
	}
	for _, path := range files {
		name := path[strings.LastIndexByte(path, '/')+1:]
		b.Run(name, func(b *testing.B) {
			file, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			st, err := file.Stat()
			if err != nil {
				b.Fatal(err)
			}
			f(b, file, st.Size())
		})
	}
}

// BenchmarkParse reads whole files; held-B is what is kept of one.
func BenchmarkParse(b *testing.B) {
	benchmarkFiles(b, func(b *testing.B, file *os.File, size int64) {
		b.ReportAllocs()
		var o *Object
		for b.Loop() {
			var err error
			if o, err = parse(file, size, testBudget); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(o.Bytes()), "held-B")
	})
}

// BenchmarkShare compares a file with one that is known: what another container with the same file costs.
func BenchmarkShare(b *testing.B) {
	benchmarkFiles(b, func(b *testing.B, file *os.File, size int64) {
		o, err := parse(file, size, testBudget)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if id, err := replay(file, size, o.log); err != nil || id != o.id {
				b.Fatal("not the same", err)
			}
		}
	})
}

// BenchmarkLookup looks addresses all over the code up.
func BenchmarkLookup(b *testing.B) {
	benchmarkFiles(b, func(b *testing.B, file *os.File, size int64) {
		o, err := parse(file, size, testBudget)
		if err != nil {
			b.Fatal(err)
		}
		var code segment
		for _, s := range o.segments {
			if s.exec && s.filesz > code.filesz {
				code = s
			}
		}
		var lines []Line
		var at, frames, lookups uint64
		for b.Loop() {
			at = (at + 0x9e3779b9) % code.filesz
			lines = o.Lookup(lines[:0], code.vaddr+Address(at))
			frames += uint64(len(lines))
			lookups++
		}
		b.ReportMetric(float64(frames)/float64(lookups), "frames/op")
	})
}

// BenchmarkKallsyms parses a kernel of 200,000 symbols.
func BenchmarkKallsyms(b *testing.B) {
	var text strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&text, "%x t some_kernel_function_%d\n", 0xffffffff81000000+uint64(i)*64, i*7919%200_000)
	}
	for b.Loop() {
		t, err := parseKallsyms(strings.NewReader(text.String()))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(t.bytesHeld()), "held-B")
	}
}
