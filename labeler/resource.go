package labeler

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxAttributes bounds OTEL_RESOURCE_ATTRIBUTES: it is a container's word, and a program's environment can be megabytes.
const maxAttributes = 16 << 10

// resourceAttribute returns one attribute out of the text of OTEL_RESOURCE_ATTRIBUTES, "" if it is not there. The text is
// key=value pairs with commas between, both percent-encoded where needed (a + is a +). As OpenTelemetry's specification
// says, text with any error in it counts as a whole as absent. Of equal keys the last one holds.
func resourceAttribute(s, key string) string {
	if len(s) > maxAttributes {
		return ""
	}
	found := ""
	for pair := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok {
			return ""
		}
		k, err := url.PathUnescape(strings.TrimSpace(k))
		if err != nil || k == "" {
			return ""
		}
		v, err = url.PathUnescape(strings.TrimSpace(v))
		if err != nil || !utf8.ValidString(v) {
			return ""
		}
		if k == key {
			found = v
		}
	}
	return found
}
