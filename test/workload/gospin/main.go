// Gospin is a Go program of known truth: two goroutines on one thread, with the shares
//
//	main.worker > main.alpha > main.leafSixty            60 %
//	main.worker > main.beta > main.leafThirty            30 %
//	main.worker > main.beta > main.inlinedTen (inlined)  10 %
package main

import "runtime"

// unit is about 20 µs of work.
const unit = 15000

var results [2]struct {
	v uint64
	_ [56]byte // a cache line for each goroutine
}

//go:noinline
func leafSixty(x uint64) uint64 {
	for range 60 * unit / 10 {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return last(x)
}

//go:noinline
func leafThirty(x uint64) uint64 {
	for range 30 * unit / 10 {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return last(x)
}

// last costs nothing. That the others call it makes the compiler give them a frame: a function that calls nobody has none,
// and its caller would be missing from the known stack.
//
//go:noinline
func last(x uint64) uint64 { return x ^ x>>33 }

// inlinedTen is small enough that the compiler puts it into its caller.
func inlinedTen(x uint64) uint64 {
	for range 10 * unit / 10 {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

//go:noinline
func alpha(x uint64) uint64 { return leafSixty(x) + 1 }

//go:noinline
func beta(x uint64) uint64 { return inlinedTen(leafThirty(x)) + 1 }

func worker(i int) {
	for x := uint64(i); ; x = results[i].v {
		results[i].v = beta(alpha(x))
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	for i := range results {
		go worker(i)
	}
	select {}
}
