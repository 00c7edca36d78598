package sampler

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestKernelsThatNobodyTriedAreRefused(t *testing.T) {
	for release, old := range map[string]bool{
		"4.19.0-27-amd64": true, "5.15.0-91-generic": true, "6.0.12": true,
		"6.1.192": false, "6.12.117+deb12-cloud-arm64": false, "7.0": false, "nonsense": false, "": false,
	} {
		var log bytes.Buffer
		c := Config{Log: slog.New(slog.NewTextHandler(&log, nil))}
		err := c.tested(release)
		if !old {
			if err != nil || log.Len() > 0 {
				t.Errorf("%q: %v %s", release, err, log.Bytes())
			}
			continue
		}
		var lacks *MachineError
		if !errors.As(err, &lacks) || !strings.Contains(err.Error(), release) || !strings.Contains(lacks.Remedy(), "Linux 6.1 or newer") ||
			!strings.Contains(lacks.Remedy(), "sampling.untested_kernel") {
			t.Errorf("%q: %v", release, err)
		}
		c.UntestedKernel = true
		if err := c.tested(release); err != nil || !strings.Contains(log.String(), release) {
			t.Errorf("%q, asked for: %v, logged %q", release, err, log.Bytes())
		}
	}
}
