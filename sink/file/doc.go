// Package file writes a profile in the formats that people open: pprof, a self-contained HTML flame graph, SVG, folded
// stacks, speedscope JSON and a text table. It also holds what a flame graph is made of, for this package and sink/web:
// the model ([Tree], [Build], [BuildDiff]) and the renderer ([Assets]).
//
// Everything is a function of the profile: no goroutines, no state, no network. Only [Create] touches the file system. A
// profile's strings come out of containers and are hostile: each writer escapes for its own format, and the renderer puts
// them on the page as text only.
//
// # The renderer
//
// assets/flamegraph.js and assets/flamegraph.css draw a [Tree] in any page, without an external resource, an inline style
// or eval, so that a page may forbid all three:
//
//	const graph = window.stokerFlamegraph(element, tree, {
//		unit: "nanoseconds",       // the sample type's unit: nanoseconds, bytes, count, …
//		diff: false,               // colour by the change from baseTotal to total, as shares of the whole
//		onSelect: (node) => { },   // a frame was clicked: the graph has zoomed to that node of the tree
//		inverted: false,           // true: the root at the bottom
//		baseline: 0,               // what 100 % is, where it is not the root's total; 0: the root
//	});
//	graph.search("serve|^sys_");     // text or regular expression, marks what matches; returns {matches, value, share,
//	                                  // partial}; partial: what is in "other" was not searched
//	graph.zoom(node); graph.reset();
//	graph.update(tree);              // another tree in the same place; search and zoom are kept where they still match
//	graph.destroy();
//
// Each frame is an element with the class "sfg-frame" that has its node's name as text and in its aria-label. The page may
// set the --sfg-* colours; without that they follow prefers-color-scheme.
package file

import "embed"

// Assets holds flamegraph.js and flamegraph.css below "assets/".
//
//go:embed assets/flamegraph.js assets/flamegraph.css
var Assets embed.FS
