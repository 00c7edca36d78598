package web

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/pprof/profile"
)

// Backend is what the pages and the API need of the agent, besides its store. All methods may be called from many goroutines at once.
type Backend interface {
	// Containers lists what the registry knows, sorted by name, containers gone less than two windows ago included.
	Containers(ctx context.Context) ([]Container, error)
	// Sources says who tells about containers, in the order of the agent's list. It must not block.
	Sources(ctx context.Context) ([]Source, error)
	// Record samples the targets for as long as the request says and returns one merged profile. progress is called from
	// the goroutine that called Record, about once a second. An error that is an [*Error] keeps its status and remedy.
	Record(ctx context.Context, r RecordRequest, progress func(RecordProgress)) (*profile.Profile, error)
	// Top is what the last complete window saw; a zero WindowEnd means there has been none yet.
	Top(ctx context.Context) (Top, error)
	// Health says what works and what does not, each with its remedy. It must not block.
	Health() Health
	// Metrics answers /metrics in the Prometheus text format.
	Metrics() http.Handler
}

// Config is how the pages and the API behave. The zero value of a field means its default.
type Config struct {
	Logger *slog.Logger // default: slog.Default()
	// Hosts are further names under which the server may be asked for, besides localhost and addresses.
	Hosts []string
	// Token must be sent by who comes over TCP, when not empty; see [ReadToken].
	Token string
	// Group may record through a Unix socket; default [Group].
	Group string
	// Window is the sampling window: charts are not finer. Default 10 s.
	Window time.Duration
	// MaxMergeBytes bounds the gzipped profiles that one request may merge. Default 64 MiB.
	MaxMergeBytes int64
	// MaxHeavy is how many requests may merge profiles at once. Default 2.
	MaxHeavy int
	// Timeout bounds a request that reads the store. Default 30 s.
	Timeout time.Duration
	Now     func() time.Time // default: time.Now
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Group == "" {
		c.Group = Group
	}
	if c.Window <= 0 {
		c.Window = 10 * time.Second
	}
	if c.MaxMergeBytes <= 0 {
		c.MaxMergeBytes = 64 << 20
	}
	if c.MaxHeavy <= 0 {
		c.MaxHeavy = 2
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
