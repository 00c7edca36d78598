package pyroscope

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stamp tells one state of a file from another without reading it: rotating tools replace the file or write into it.
type stamp struct {
	mtime time.Time
	size  int64
	inode uint64
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{mtime: info.ModTime(), size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s, nil
}

// maxSecret bounds a secret file: a path to something else must not fill the memory.
const maxSecret = 64 << 10

// secretFile is a secret that may change while we run.
type secretFile struct {
	path, setting string

	mu    sync.Mutex // guards what follows
	at    stamp
	value string
}

// read returns the secret without white space around it; it opens the file only when it has changed.
func (s *secretFile) read() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, err := stampOf(s.path)
	if err != nil {
		return "", fmt.Errorf("read the secret of %s: %w: create the file, readable for the user that stoker runs as", s.setting, err)
	}
	if at == s.at {
		return s.value, nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		return "", fmt.Errorf("read the secret of %s: %w: make it readable for the user that stoker runs as", s.setting, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("read the secret of %s: %w", s.setting, err)
	}
	value := strings.TrimSpace(string(b))
	switch {
	case len(b) > maxSecret:
		return "", fmt.Errorf("the secret of %s, %s, has more than %d bytes: it is some other file", s.setting, s.path, maxSecret)
	case value == "":
		return "", fmt.Errorf("the secret of %s, %s, is empty", s.setting, s.path)
	case strings.ContainsAny(value, "\r\n\x00"):
		return "", fmt.Errorf("the secret of %s, %s, has several lines: it must be one", s.setting, s.path)
	}
	s.at, s.value = at, value
	return value, nil
}

// authorization is the header's value, or empty.
func (c *Client) authorization() (string, error) {
	secret := ""
	if c.secret != nil {
		var err error
		if secret, err = c.secret.read(); err != nil {
			return "", err
		}
	}
	switch {
	case c.cfg.BasicAuth != (BasicAuth{}):
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.cfg.BasicAuth.Username+":"+secret)), nil
	case c.cfg.Authorization.CredentialsFile != "" && c.cfg.Authorization.Type != "":
		return c.cfg.Authorization.Type + " " + secret, nil
	case secret != "":
		return "Bearer " + secret, nil
	}
	return "", nil
}
