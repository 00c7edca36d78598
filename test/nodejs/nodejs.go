// Package nodejs gives tests the builds of Node.js that fetch.sh has brought: one of every major version whose frames are read.
package nodejs

import (
	_ "embed"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed versions.txt
var versions string

// Binary is one build.
type Binary struct{ Version, Path string }

// Binaries are all builds of versions.txt. The test fails if one of them is not there.
func Binaries(t testing.TB) []Binary {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	var all []Binary
	for line := range strings.Lines(versions) {
		version, _, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(version, "#") {
			continue
		}
		b := Binary{version, filepath.Join(cache, "stoker-test", "nodejs", version, "node")}
		if _, err := os.Stat(b.Path); err != nil {
			t.Fatalf("%v: test/nodejs/fetch.sh brings it", err)
		}
		all = append(all, b)
	}
	return all
}
