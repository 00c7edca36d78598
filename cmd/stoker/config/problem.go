package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one mistake: where it is, which key it concerns, what is wrong and what to write instead.
type Problem struct {
	// Where is "stoker.yaml:3:5", "STOKER_STORE_PATH" or "--store-path"; empty for a default.
	Where string
	// Key is the key's path, "sampling.frequency"; empty where a line has none (a syntax error).
	Key     string
	Message string
}

func (p Problem) String() string {
	var parts []string
	for _, s := range []string{p.Where, p.Key, p.Message} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Problems is every mistake of a configuration, in the order of the file. It is the error that Load, Parse and Validate
// return.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// sort puts the problems of the file in the order of the file; the others follow as they came.
func (p Problems) sort() {
	place := func(where string) (line, column int) {
		parts := strings.Split(where, ":")
		numbers := [2]int{}
		for i := range numbers {
			if at := len(parts) - 2 + i; at >= 1 {
				numbers[i], _ = strconv.Atoi(parts[at]) // 0 where it is no number: not from a file
			}
		}
		if numbers[0] == 0 { // "file:line" of a syntax error, or no place in a file
			return numbers[1], 0
		}
		return numbers[0], numbers[1]
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		la, ca := place(a.Where)
		lb, cb := place(b.Where)
		switch {
		case la == 0 || lb == 0: // not from the file: behind what is
			return cmp.Compare(min(lb, 1), min(la, 1))
		case la != lb:
			return la - lb
		}
		return ca - cb
	})
}

// asError returns nil for no problems: a nil Problems in an error interface would not compare equal to nil.
func (p Problems) asError() error {
	if len(p) == 0 {
		return nil
	}
	p.sort()
	return p
}

func (p *Problems) add(where, key, format string, args ...any) {
	*p = append(*p, Problem{Where: where, Key: key, Message: fmt.Sprintf(format, args...)})
}
