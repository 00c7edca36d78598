package symbol

import "bytes"

const (
	pageBytes = 64 << 10
	maxPages  = 128 // 8 MiB: all tables of most files, a window into those of the largest
	// smallPage is for those who look at a few places only.
	smallPage = 8 << 10
)

// pager gives random access to a source through a window of pages, so that parsing a file takes little memory however large
// its tables are. A file whose references jump about so that pages are read again and again ends at the source's limit.
type pager struct {
	src   *source
	size  uint64 // of a page
	pages map[uint64]*page
	last  *page
	tick  uint64
	err   error // why the last read came back short, if not for the end of the file
}

type page struct {
	index uint64
	used  uint64
	data  []byte
}

func newPager(src *source) *pager { return newPagerOf(src, pageBytes) }

func newPagerOf(src *source, size uint64) *pager {
	return &pager{src: src, size: size, pages: make(map[uint64]*page)}
}

// page returns the page that holds offset off; nil beyond the end of the file and after an error.
func (p *pager) page(off uint64) *page {
	if off >= p.src.size {
		return nil
	}
	i := off / p.size
	if p.last != nil && p.last.index == i {
		return p.last
	}
	p.tick++
	g := p.pages[i]
	if g == nil {
		if p.err != nil {
			return nil
		}
		if len(p.pages) < maxPages {
			g = &page{data: make([]byte, p.size)}
		} else {
			for _, o := range p.pages {
				if g == nil || o.used < g.used {
					g = o
				}
			}
			delete(p.pages, g.index)
		}
		g.index, g.data = i, g.data[:min(p.size, p.src.size-i*p.size)]
		if err := p.src.fill(g.data, i*p.size, "table"); err != nil {
			p.err, p.last = err, nil
			return nil
		}
		p.pages[i] = g
	}
	g.used, p.last = p.tick, g
	return g
}

// read returns up to n bytes at off, fewer at the end of the file. They are valid until the next call.
func (p *pager) read(off, n uint64) []byte {
	g := p.page(off)
	if g == nil {
		return nil
	}
	b := g.data[off%p.size:]
	if uint64(len(b)) >= n {
		return b[:n]
	}
	b = append(make([]byte, 0, min(n, p.src.size-off)), b...)
	for uint64(len(b)) < n {
		g := p.page(off + uint64(len(b)))
		if g == nil {
			break
		}
		b = append(b, g.data[:min(uint64(len(g.data)), n-uint64(len(b)))]...)
	}
	return b
}

// cstring returns the zero-terminated string at off, cut at end and at maxName bytes. It is valid until the next call.
func (p *pager) cstring(off, end uint64) []byte {
	if off >= end {
		return nil
	}
	n := min(maxName, end-off)
	g := p.page(off)
	if g == nil {
		return nil
	}
	b := g.data[off%p.size:]
	b = b[:min(n, uint64(len(b)))]
	i := bytes.IndexByte(b, 0)
	if i < 0 && uint64(len(b)) < n {
		b = p.read(off, n)
		i = bytes.IndexByte(b, 0)
	}
	if i >= 0 {
		b = b[:i]
	}
	return b
}
