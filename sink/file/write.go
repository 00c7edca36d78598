package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink/pprof"
)

// Format is one way of writing a profile.
type Format uint8

// The formats, with the endings that [FormatOf] knows them by.
const (
	Pprof      Format = iota + 1 // .pb.gz: gzipped profile.proto
	HTML                         // .html: a page with an interactive flame graph and a table, which needs nothing else
	SVG                          // .svg: a still flame graph
	Folded                       // .folded: "root;…;leaf value" lines, as flamegraph.pl and inferno read them
	Speedscope                   // .json: speedscope's file format
	Text                         // .txt or "-": a table like that of pprof -top
)

var endings = []struct {
	ending string
	format Format
	name   string
}{
	{".pb.gz", Pprof, "pprof"}, {".html", HTML, "html"}, {".svg", SVG, "svg"}, {".folded", Folded, "folded"},
	{".json", Speedscope, "speedscope"}, {".txt", Text, "text"},
}

func (f Format) String() string {
	for _, e := range endings {
		if e.format == f {
			return e.name
		}
	}
	return "unknown"
}

// ContentType is the media type for HTTP.
func (f Format) ContentType() string {
	switch f {
	case HTML:
		return "text/html; charset=utf-8"
	case SVG:
		return "image/svg+xml"
	case Speedscope:
		return "application/json"
	case Folded, Text:
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// Ending is what a file of this format ends with, ".pb.gz" for pprof.
func (f Format) Ending() string {
	for _, e := range endings {
		if e.format == f {
			return e.ending
		}
	}
	return ""
}

// FormatOf returns the format that a file name asks for by its ending; "-" asks for text. The error names the endings.
func FormatOf(name string) (Format, error) {
	if name == "-" {
		return Text, nil
	}
	var known []string
	for _, e := range endings {
		if strings.HasSuffix(strings.ToLower(name), e.ending) {
			return e.format, nil
		}
		known = append(known, e.ending)
	}
	return 0, fmt.Errorf("%q does not say which format to write: end it with %s, or use - for a table", name, strings.Join(known, ", "))
}

// ParseFormat returns the format of that name: pprof, html, svg, folded, speedscope or text.
func ParseFormat(name string) (Format, error) {
	var known []string
	for _, e := range endings {
		if e.name == name {
			return e.format, nil
		}
		known = append(known, e.name)
	}
	return 0, fmt.Errorf("unknown format %q: use one of %s", name, strings.Join(known, ", "))
}

// Options say what to write besides the profile. The zero Options are fine for each format.
type Options struct {
	// Title is the heading of a page or picture, such as the container's name.
	Title string
	// Facts are written under the title in this order: labels, node, whatever helps a reader.
	Facts []Fact
	// Notes are sentences about what the profile does not show: samples that were not counted, and why.
	Notes []string
	// SampleIndex chooses the sample type where the format shows only one. pprof and speedscope always hold all.
	SampleIndex int
	// MaxNodes bounds a flame graph; 0 means DefaultNodes.
	MaxNodes int
	// Rows bounds a table of functions, 0 means all of them in text and the 200 heaviest on a page.
	Rows int
	// Width is the number of columns that text may use; 0 means as many as it needs.
	Width int
	// Base makes pprof and HTML show the difference between Base and the profile.
	Base *profile.Profile
}

// Fact is a name with its value.
type Fact struct{ Name, Value string }

// Write writes p to w in the given format. p is only read, except that pprof's encoder fills tables inside it: do not write
// the same profile from two goroutines.
func Write(w io.Writer, format Format, p *profile.Profile, opts Options) error {
	if opts.SampleIndex < 0 || opts.SampleIndex >= len(p.SampleType) {
		return fmt.Errorf("write %s: the profile has %d sample types, there is no number %d", format, len(p.SampleType), opts.SampleIndex)
	}
	if opts.Base != nil && format != Pprof && format != HTML {
		return fmt.Errorf("write %s: a difference can be written as pprof (.pb.gz) and HTML (.html) only", format)
	}
	var err error
	switch format {
	case Pprof:
		err = writePprof(w, p, opts)
	case HTML:
		err = writeHTML(w, p, opts)
	case SVG:
		err = writeSVG(w, p, opts)
	case Folded:
		err = writeFolded(w, p, opts)
	case Speedscope:
		err = writeSpeedscope(w, p, opts)
	case Text:
		err = writeText(w, p, opts)
	default:
		return fmt.Errorf("write profile: unknown format %d", format)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", format, err)
	}
	return nil
}

func writePprof(w io.Writer, p *profile.Profile, opts Options) error {
	if opts.Base != nil {
		d, err := pprof.Diff(opts.Base, p)
		if err != nil {
			return err
		}
		p = d
	}
	gz, err := pprof.Encode(p)
	if err != nil {
		return err
	}
	_, err = w.Write(gz)
	return err
}

// Create writes p to a file whose name says the format. A regular file appears complete or not at all: it is written beside
// its final place and renamed. A device or pipe is written to as it is. The error says what to do.
func Create(name string, p *profile.Profile, opts Options) error {
	format, err := FormatOf(name)
	if err != nil {
		return err
	}
	if name == "-" {
		return errors.New(`"-" is no file: write to standard output`)
	}
	err = create(name, func(w io.Writer) error { return Write(w, format, p, opts) })
	if err != nil {
		return fmt.Errorf("write profile to %s: %w%s", name, err, remedy(err, filepath.Dir(name)))
	}
	return nil
}

func remedy(err error, dir string) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf(": create the directory %s or choose another place", dir)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Sprintf(": choose a directory that you may write to, %s is not one", dir)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Sprintf(": free some space in %s or choose another place", dir)
	case errors.Is(err, syscall.EISDIR):
		return ": name a file in it"
	}
	return ""
}

func create(name string, write func(io.Writer) error) (err error) {
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return syscall.EISDIR
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	case err == nil:
		// A rename would replace a symbolic link, not what it points to.
		if name, err = filepath.EvalSymlinks(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	dir, base := filepath.Split(name)
	var f *os.File
	for try := 0; ; try++ { // not os.CreateTemp: the file gets the mode that the umask gives any other
		f, err = os.OpenFile(filepath.Join(dir, fmt.Sprintf(".%s.%08x", base, rand.Uint32())), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) || try == 100 {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
