package file

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// sums holds in every tree.
func sums(t *testing.T, n *Tree, path string) {
	t.Helper()
	total, base := n.Self, n.BaseSelf
	for _, c := range n.Children {
		total += c.Total
		base += c.BaseTotal
		sums(t, c, path+";"+c.Name)
	}
	if total != n.Total || base != n.BaseTotal || n.Self < 0 || n.BaseSelf < 0 {
		t.Errorf("%s: self and children are %d and %d, total %d and %d", path, total, base, n.Total, n.BaseTotal)
	}
}

func TestTreeKeepsSumsHoweverSmallItMustBe(t *testing.T) {
	for _, nodes := range []int{0, 1, 2, 3, 10, 100, 1000, 1_000_000} {
		for _, diff := range []bool{false, true} {
			var tree *Tree
			var err error
			if diff {
				tree, err = BuildDiff(small(), large(), 0, nodes)
			} else {
				tree, err = Build(large(), 0, nodes)
			}
			if err != nil {
				t.Fatal(err)
			}
			sums(t, tree, tree.Name)
			if want := int64(0); tree.Total == want {
				t.Error("an empty tree")
			}
			limit := nodes
			if nodes == 0 {
				limit = DefaultNodes
			}
			if n := tree.Nodes(); n > max(limit, 2) {
				t.Errorf("%d nodes, at most %d were asked for", n, limit)
			}
		}
	}
}

func TestTreeOfOneLongStackShrinksFromTheLeaf(t *testing.T) {
	b := newProfile()
	var stack [][2]string
	for i := range 500 {
		stack = append(stack, [2]string{app, string(rune('a' + i%26))})
	}
	b.add(10, stack...)
	tree, err := Build(b.p, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	sums(t, tree, "all")
	if d := tree.Depth(); d < 40 || d > 100 {
		t.Errorf("depth %d, want about half of 100", d)
	}
}

func TestTreeIsNoDeeperThanBrowsersNest(t *testing.T) {
	b := newProfile()
	var stack [][2]string
	for range 5000 {
		stack = append(stack, [2]string{app, "recursive"})
	}
	b.add(10, stack...)
	b.add(7, stack[:1400]...)
	tree, err := Build(b.p, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	sums(t, tree, "all")
	if d := tree.Depth(); d != maxDepth+1 {
		t.Errorf("depth %d, want %d", d, maxDepth+1)
	}
	encoded, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var back Tree
	if err := json.Unmarshal(encoded, &back); err != nil || back.Nodes() != tree.Nodes() {
		t.Errorf("%d nodes came back, %v", back.Nodes(), err)
	}
}

func TestDiffTreeHasBothSides(t *testing.T) {
	base, compare := newProfile(), newProfile()
	base.add(100, [2]string{app, "main"}, [2]string{app, "gone"})
	base.add(50, [2]string{app, "main"})
	compare.add(30, [2]string{app, "main"}, [2]string{app, "new"})
	tree, err := BuildDiff(base.p, compare.p, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	sums(t, tree, "all")
	main := tree.Children[0]
	if tree.Total != 30 || tree.BaseTotal != 150 || main.BaseSelf != 50 || len(main.Children) != 2 {
		t.Errorf("tree %+v, main %+v", tree, main)
	}
	if gone, fresh := main.Children[0], main.Children[1]; gone.Name != "gone" || gone.Total != 0 || gone.BaseTotal != 100 || fresh.Name != "new" || fresh.Total != 30 {
		t.Errorf("children %+v, %+v", gone, fresh)
	}
}

func TestTopCountsARecursiveFunctionOnce(t *testing.T) {
	functions, total := Top(small(), 0)
	if total != 1_000_000_000 {
		t.Errorf("total %d", total)
	}
	var flat int64
	for _, f := range functions {
		flat += f.Flat
		if f.Cum > total || f.Flat > f.Cum {
			t.Errorf("%+v of %d", f, total)
		}
		if f.Name == "shop::serve(Request const&)" && f.Cum != 910_000_000 {
			t.Errorf("serve has cum %d, want 910000000", f.Cum)
		}
	}
	if flat != total {
		t.Errorf("flat sums to %d, want %d", flat, total)
	}
}

func TestEmptyProfile(t *testing.T) {
	p := small()
	p.Sample = nil
	for _, e := range endings {
		write(t, e.format, p, options)
	}
}

func TestLongNamesDoNotMultiply(t *testing.T) {
	b := newProfile()
	long := strings.Repeat("ä", 30_000)
	for i := range 300 {
		b.add(10, [2]string{app, string(rune('a' + i))}, [2]string{long, long})
	}
	for _, e := range endings {
		if n := len(write(t, e.format, b.p, options)); n > 3_000_000 {
			t.Errorf("%s has %d bytes", e.name, n)
		}
	}
	if s := shorten(long); len(s) > maxText || !utf8.ValidString(s) || !strings.Contains(s, "ä…ä") {
		t.Errorf("shortened to %d bytes", len(s))
	}
}
