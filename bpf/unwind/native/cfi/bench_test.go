package cfi

import (
	"flag"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var benchFiles = flag.String("bench-files", "", "files to measure besides libc and libstdc++, a list of glob patterns")

// BenchmarkFile builds all rows of a file, and its pages one by one as they are built for samples.
func BenchmarkFile(b *testing.B) {
	paths := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"}
	for _, pattern := range strings.Fields(*benchFiles) {
		names, err := filepath.Glob(pattern)
		if err != nil {
			b.Fatal(err)
		}
		paths = append(paths, names...)
	}
	for _, path := range paths {
		b.Run(filepath.Base(path), func(b *testing.B) {
			file := open(b, path)
			st, err := file.Stat()
			if err != nil {
				b.Fatal(err)
			}
			rules := map[Rule]uint16{}
			intern := func(r Rule) (uint16, bool) {
				n, ok := rules[r]
				if !ok {
					n = uint16(len(rules) + 1)
					rules[r] = n
				}
				return n, true
			}
			var opened, longest time.Duration
			var pages, rows, most int
			var text, held int64
			for b.Loop() {
				began := time.Now()
				f, err := Open(file, st.Size())
				if err != nil {
					b.Fatal(err)
				}
				opened, longest = time.Since(began), 0
				held = f.Bytes()
				pages, rows, most, text = 0, 0, 0, 0
				var page []CompactRow
				for _, code := range f.Code() {
					text += int64(code.Size)
					for n := PageOf(code.Address); n <= PageOf(code.End()-1); n++ {
						began := time.Now()
						if page, err = f.Page(file, page[:0], n, intern, nil); err != nil {
							b.Fatal(err)
						}
						longest = max(longest, time.Since(began))
						pages, rows, most = pages+1, rows+len(page), max(most, len(page))
					}
				}
			}
			perFile := b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(float64(rows), "rows")
			b.ReportMetric(float64(len(rules)), "rules")
			b.ReportMetric(float64(4*rows)/float64(text), "rowbytes/textbyte")
			b.ReportMetric(1e3*perFile/(float64(text)/(1<<20)), "ms/MiB-text")
			b.ReportMetric(1e6*perFile/float64(pages), "µs/page")
			b.ReportMetric(float64(longest.Microseconds()), "µs-longest-page")
			b.ReportMetric(float64(opened.Microseconds()), "µs/open")
			b.ReportMetric(float64(held), "bytes-held")
			b.ReportMetric(float64(most), "rows-largest-page")
		})
	}
}
