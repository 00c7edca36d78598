package file

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// DefaultNodes is how many nodes a flame graph has unless told otherwise: a page of one or two megabytes, which a browser
// draws without effort since it draws only what is wide enough. Pyroscope's default is half of it.
const DefaultNodes = 16_384

// maxDepth bounds the height of a tree. Profiles of ours have at most 1000 frames, some of them with inlined functions;
// what is deeper (a foreign profile) becomes one "other" node, for JSON and browsers nest only so far.
const maxDepth = 1500

// Names of nodes that are no function.
const (
	RootName  = "all"
	OtherName = "other"
)

// Tree is one node of a flame graph and all below it. Total = Self + the sum of the children's Total, in every tree that
// this package makes. A difference (see [BuildDiff]) also has BaseSelf and BaseTotal, with the same rule.
//
// It is what assets/flamegraph.js draws: encode it as JSON and hand it to window.stokerFlamegraph.
type Tree struct {
	Name string `json:"name"`
	// Module is the file that holds the code ("/usr/bin/shop", "[kernel.kallsyms]"), File the source file, where known.
	Module string `json:"module,omitempty"`
	File   string `json:"file,omitempty"`
	// Other marks a node that stands for several too small to draw.
	Other     bool    `json:"other,omitempty"`
	Self      int64   `json:"self"`
	Total     int64   `json:"total"`
	BaseSelf  int64   `json:"baseSelf,omitempty"`
	BaseTotal int64   `json:"baseTotal,omitempty"`
	Children  []*Tree `json:"children,omitempty"`
}

// weight is what a node's width stands for: both sides of a difference.
func (t *Tree) weight() int64 { return t.Total + t.BaseTotal }

// treeKey tells siblings apart. A function of the same name in two files is two nodes.
type treeKey struct {
	parent       *Tree
	name, module string
}

type treeBuilder struct {
	root  *Tree
	nodes map[treeKey]*Tree
}

// Build makes the flame graph of one sample type of p, the root being all samples. maxNodes bounds its size: the smallest
// nodes are put together as "other", one for each parent; 0 means [DefaultNodes]. Samples with a value of zero or less are
// left out. Children are sorted by name, so that the same code stays in the same place.
func Build(p *profile.Profile, sampleIndex, maxNodes int) (*Tree, error) {
	b := newTreeBuilder()
	if err := b.add(p, sampleIndex, false); err != nil {
		return nil, err
	}
	return b.finish(maxNodes), nil
}

// BuildDiff makes the flame graph of a difference: Total and Self come from compare, BaseTotal and BaseSelf from base. The
// two may differ in length; whoever draws them compares shares, not values.
func BuildDiff(base, compare *profile.Profile, sampleIndex, maxNodes int) (*Tree, error) {
	b := newTreeBuilder()
	if err := b.add(compare, sampleIndex, false); err != nil {
		return nil, err
	}
	if err := b.add(base, sampleIndex, true); err != nil {
		return nil, err
	}
	return b.finish(maxNodes), nil
}

func newTreeBuilder() *treeBuilder {
	return &treeBuilder{root: &Tree{Name: RootName}, nodes: map[treeKey]*Tree{}}
}

func (b *treeBuilder) add(p *profile.Profile, sampleIndex int, base bool) error {
	if sampleIndex < 0 || sampleIndex >= len(p.SampleType) {
		return fmt.Errorf("profile has %d sample types, there is no number %d", len(p.SampleType), sampleIndex)
	}
	for _, s := range p.Sample {
		if sampleIndex >= len(s.Value) || s.Value[sampleIndex] <= 0 {
			continue
		}
		v := s.Value[sampleIndex]
		node, depth := b.root, 0
		count(node, v, base, false)
		for f := range frames(s) {
			if depth++; depth >= maxDepth {
				f = frame{name: OtherName, other: true}
			}
			node = b.child(node, f)
			count(node, v, base, false)
			if f.other {
				break
			}
		}
		count(node, v, base, true)
	}
	return nil
}

func count(t *Tree, v int64, base, self bool) {
	switch {
	case base && self:
		t.BaseSelf += v
	case base:
		t.BaseTotal += v
	case self:
		t.Self += v
	default:
		t.Total += v
	}
}

func (b *treeBuilder) child(parent *Tree, f frame) *Tree {
	k := treeKey{parent, f.name, f.module}
	t, ok := b.nodes[k]
	if !ok {
		t = &Tree{Name: f.name, Module: f.module, File: f.file, Other: f.other}
		b.nodes[k] = t
		parent.Children = append(parent.Children, t)
	}
	return t
}

func (b *treeBuilder) finish(maxNodes int) *Tree {
	if maxNodes <= 0 {
		maxNodes = DefaultNodes
	}
	b.root.sort()
	if len(b.nodes)+1 <= maxNodes {
		return b.root
	}
	weights := make([]int64, 0, len(b.nodes))
	for _, t := range b.nodes {
		weights = append(weights, t.weight())
	}
	slices.SortFunc(weights, func(x, y int64) int { return cmp.Compare(y, x) })
	// Each node that stays can need an "other" of its own, so half of maxNodes surely fits; mostly far more do.
	fits, tooMany := max(0, (maxNodes-2)/2), maxNodes
	for tooMany-fits > 1 {
		half := (fits + tooMany) / 2
		if p := newPruner(weights, half); p.nodes(b.root) <= maxNodes {
			fits = half
		} else {
			tooMany = half
		}
	}
	p := newPruner(weights, fits)
	p.prune(b.root)
	return b.root
}

// sort puts children in the order of their names, all the way down.
func (t *Tree) sort() {
	slices.SortFunc(t.Children, func(a, b *Tree) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Module, b.Module))
	})
	for _, c := range t.Children {
		c.sort()
	}
}

// pruner keeps nodes heavier than least, and as many as heavy as least as ties says: in a tree of one long stack all nodes
// weigh the same. A node weighs no more than its parent, so what stays hangs together.
type pruner struct {
	least int64
	ties  int
}

// newPruner makes a pruner that keeps the n heaviest; weights are all weights, the heaviest first.
func newPruner(weights []int64, n int) pruner {
	if n == 0 {
		return pruner{least: math.MaxInt64}
	}
	p := pruner{least: weights[n-1]}
	for i := n - 1; i >= 0 && weights[i] == p.least; i-- {
		p.ties++
	}
	return p
}

func (p *pruner) keeps(t *Tree) bool {
	w := t.weight()
	switch {
	case t.Other:
		return false // joins the "other" of its parent
	case w > p.least:
		return true
	case w == p.least && p.ties > 0:
		p.ties--
		return true
	}
	return false
}

// nodes is how many nodes prune would leave. It asks in the same order, so that the same ties stay.
func (p *pruner) nodes(t *Tree) int {
	n, other := 1, 0
	var stay []*Tree
	for _, c := range t.Children {
		if p.keeps(c) {
			stay = append(stay, c)
		} else {
			other = 1
		}
	}
	for _, c := range stay {
		n += p.nodes(c)
	}
	return n + other
}

// prune puts the children that do not stay together, all the way down.
func (p *pruner) prune(t *Tree) {
	var other *Tree
	t.Children = slices.DeleteFunc(t.Children, func(c *Tree) bool {
		if p.keeps(c) {
			return false
		}
		if other == nil {
			other = &Tree{Name: OtherName, Other: true}
		}
		other.Self += c.Total
		other.Total += c.Total
		other.BaseSelf += c.BaseTotal
		other.BaseTotal += c.BaseTotal
		return true
	})
	for _, c := range t.Children {
		p.prune(c)
	}
	if other != nil {
		t.Children = append(t.Children, other)
	}
}

// Nodes is the number of nodes in t, itself included.
func (t *Tree) Nodes() int {
	n := 1
	for _, c := range t.Children {
		n += c.Nodes()
	}
	return n
}

// Depth is the number of nodes on the longest way from t down, itself included.
func (t *Tree) Depth() int {
	d := 0
	for _, c := range t.Children {
		d = max(d, c.Depth())
	}
	return d + 1
}
