package sampler

import "testing"

func TestKernelsThatMayFreeze(t *testing.T) {
	for _, c := range []struct {
		release string
		want    bool
	}{
		{"5.15.0-91-generic", false},
		{"5.18.19", false},
		{"5.19.0-50-generic", true},
		{"6.0.12", true},
		{"6.1.25-37.47.amzn2023.x86_64", true},
		{"6.1.192", false},
		{"6.2.0-39-generic", true},
		{"6.3.13", true},
		{"6.4.0", false},
		{"6.12.117+deb12-cloud-amd64", false},
		{"6.18.44", false},
		{"nonsense", false},
		{"", false},
	} {
		if got := MayFreeze(c.release); got != c.want {
			t.Errorf("MayFreeze(%q) = %t, want %t", c.release, got, c.want)
		}
	}
}
