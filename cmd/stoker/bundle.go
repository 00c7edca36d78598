package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
)

// writeBundle writes what somebody needs who is to help from afar. The file is its owner's only; a part that cannot be had is there as
// the reason why.
func (a *app) writeBundle(ctx context.Context, path string, l *config.Loaded, rows []doctor.Row) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	t := tar.NewWriter(z)
	defer func() {
		for _, c := range []io.Closer{t, z, f} {
			if e := c.Close(); err == nil {
				err = e
			}
		}
	}()
	add := func(name string, text []byte) {
		if err == nil {
			err = t.WriteHeader(&tar.Header{Name: "stoker/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now()})
		}
		if err == nil {
			_, err = t.Write(text)
		}
	}
	values := func(name string, v any, e error) {
		var b bytes.Buffer
		if e == nil {
			e = printJSON(&b, v)
		}
		if e != nil {
			b.Reset()
			fmt.Fprintln(&b, e)
			name += ".error"
		}
		add(name, b.Bytes())
	}
	values("doctor.json", rows, nil)
	v, e := a.versionInfo()
	values("version.json", v, e)
	values("config.json", l.Values(), nil) // its secrets are hidden; in URLs none are allowed
	client := newClient(l.Config.Socket)
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	containers, e := client.Containers(ctx)
	values("containers.json", containers, e)
	sources, e := client.Sources(ctx)
	values("sources.json", sources, e)
	metrics, e := client.metrics(ctx)
	if e != nil {
		values("metrics.txt", nil, e)
	} else {
		add("metrics.txt", metrics)
	}
	return err
}

// metrics is the agent's page of metrics.
func (c *client) metrics(ctx context.Context) ([]byte, error) {
	answer, err := c.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
}
