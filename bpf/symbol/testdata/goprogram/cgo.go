//go:build cgo

package main

/*
__attribute__((noinline)) int in_c(int n) { return n * 3; }
*/
import "C"

func extra() { keep(int(C.in_c(4))) }
