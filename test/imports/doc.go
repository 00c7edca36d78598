// Package imports has only tests: they hold what a reader of this repository may rely on everywhere. Which package never
// imports which and why, that every package says what it is for, that BPF sources carry their licence, that no test is
// skipped. A rule that nothing checks fades.
package imports
