// Package features is a test that runs inside a guest of package vm and prints, a line for each, what the kernel there has and lacks of what
// a profiler could use. test/vm makes the table of docs/kernels.md from it. Nothing imports it.
package features
