package cfi

import "github.com/stoker-profiler/stoker/bpf/symbol"

// Address is an ELF virtual address.
type Address = symbol.Address

// Row says that Rule holds from Address on, until the next row's address.
type Row struct {
	Address Address
	Rule    Rule
}

// PageBytes is the size of a page of text, the unit in which rows are built, kept and evicted: a row needs only 16 bits of
// its address, and a binary search at most 16 steps.
const PageBytes = 1 << 16

// PageNumber is an address divided by [PageBytes].
type PageNumber uint64

// PageOf returns the page that a lies in.
func PageOf(a Address) PageNumber { return PageNumber(a / PageBytes) }

// Start is the page's first address.
func (n PageNumber) Start() Address { return Address(n) * PageBytes }

// CompactRow is a row within a page of text: from Low on, counted from the page's start, the rule of that number holds.
type CompactRow struct {
	Low  uint16
	Rule uint16 // [RuleInvalid], or a number that the caller's intern function gave
}

// RuleInvalid is the number of the zero Rule, [Invalid]. An intern function is never asked for it and never returns it.
const RuleInvalid = 0

// MaxPageRows is how many rows a page may have. Compilers write one per 10 to 100 bytes of code; code in which nearly every
// instruction moves the stack pointer reaches 15,000.
const MaxPageRows = 1 << 15

// Reason says why addresses have a row of kind [Invalid] though the file speaks of them, or why rows are missing.
type Reason uint8

const (
	// ReasonExpression: a DWARF expression of a form that no Rule has.
	ReasonExpression Reason = iota
	// ReasonRegister: the CFA or the return address is in a register that no Rule can name.
	ReasonRegister
	// ReasonRange: an offset that is too large or odd for the packed form.
	ReasonRange
	// ReasonOpcode: an instruction nobody knows, which makes the rest of its entry unreadable.
	ReasonOpcode
	// ReasonEntry: an entry that contradicts itself or lies outside of its section.
	ReasonEntry
	// ReasonOverlap: two entries claim the same addresses; the one with the higher start wins.
	ReasonOverlap
	// ReasonRows: more rows than MaxPageRows in a page, or more entries or instructions than a call may read.
	ReasonRows
	// ReasonRules: the caller's intern function had no number left.
	ReasonRules
	// ReasonCount is the number of reasons.
	ReasonCount
)

var reasonNames = [ReasonCount]string{"expression", "register", "range", "opcode", "entry", "overlap", "rows", "rules"}

// String returns the reason in one word, the value of a metric's label.
func (r Reason) String() string {
	if r < ReasonCount {
		return reasonNames[r]
	}
	return "unknown"
}

// Stats says what a call read and what it had to leave out.
type Stats struct {
	Entries   int    // frame description entries parsed
	BytesRead uint64 // of the file
	Refused   [ReasonCount]int
	// Of code that no table describes: functions whose instructions told their rows, and such that contradict themselves or
	// cannot be read.
	Scanned, Unclear int
}
