// The program prints what the Go runtime itself says about its code: a line "P offset" per address, the offset being that in
// the executable file, and for each of its frames, innermost inlined first, a line "F function<tab>file<tab>line<tab>start".
// It needs the linker's -checklinkname=0: the runtime's own expansion of inlined frames is not a public function.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	_ "unsafe"
)

//go:linkname expand runtime/pprof.runtime_expandFinalInlineFrame
func expand(stk []uintptr) []uintptr

const step = 53 // prime: every place in an instruction sequence is met

type shape interface{ area() int }

type square struct{ side int }

//go:noinline
func keep(n int) int { return n }

func double(n int) int     { return twice(n) + 1 } // inlined into its callers
func twice(n int) int      { return 2 * keep(n) }
func (s square) area() int { return double(s.side) * s.side }

func generic[T any](list []T, f func(T) int) (sum int) {
	for _, e := range list {
		sum += f(e)
	}
	return sum
}

func main() {
	var s shape = square{len(os.Args)}
	n := s.area() + generic([]int{1, 2}, func(i int) int { return double(i) }) + generic([]string{"a"}, func(s string) int { return len(s) })
	extra()
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	fmt.Fprintln(out, "N", n)
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	for _, l := range strings.Split(string(maps), "\n") {
		var start, end, offset, inode uintptr
		var perm, dev, path string
		if n, _ := fmt.Sscanf(l, "%x-%x %s %x %s %d %s", &start, &end, &perm, &offset, &dev, &inode, &path); n < 7 || perm[2] != 'x' || path != exe {
			continue
		}
		for pc := start; pc < end; pc += step {
			// CallersFrames is made for return addresses: at the last byte of a function it answers for the next one.
			if f, next := runtime.FuncForPC(pc), runtime.FuncForPC(pc+1); f == nil || next == nil || f.Entry() != next.Entry() {
				continue
			}
			fmt.Fprintf(out, "P %x\n", pc-start+offset)
			frames := runtime.CallersFrames(expand([]uintptr{pc + 1}))
			for {
				f, more := frames.Next()
				if f.Function != "" {
					fmt.Fprintf(out, "F %s\t%s\t%d\t%d\n", f.Function, f.File, f.Line, startLine(&f))
				}
				if !more {
					break
				}
			}
		}
	}
}
