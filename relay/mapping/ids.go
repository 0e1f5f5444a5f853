package mapping

import (
	"crypto/sha1" // RFC 9562 prescribes it; nothing here is secret
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
)

// idFunctions make ids for receivers that want them in a form of their own. The same text
// always gives the same id.
func idFunctions() []expr.Option {
	return []expr.Option{
		expr.Function("sha256", sha256Hex, new(func(string) string)),
		expr.Function("uuid5", uuid5, new(func(string, string) string)),
	}
}

// isIDFunction reports whether a function reads all of its operands, and does more with each
// byte than compare it.
func isIDFunction(name string) bool { return slices.Contains([]string{"sha256", "uuid5"}, name) }

func sha256Hex(params ...any) (any, error) {
	text, ok := params[0].(string)
	if !ok {
		return nil, kindError("sha256() needs a text, not " + kindOf(params[0]))
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:]), nil
}

// namespaces are those of RFC 9562, 6.6, by the names that an expression may use.
var namespaces = map[string]string{
	"dns": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
	"url": "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
	"oid": "6ba7b812-9dad-11d1-80b4-00c04fd430c8",
}

var uuid = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// uuid5 returns the UUID of a name within a namespace (RFC 9562, 5.5).
func uuid5(params ...any) (any, error) {
	s, err := texts(params, "uuid5() needs two texts, the namespace and the name")
	if err != nil {
		return nil, err
	}
	namespace := s[0]
	if known, ok := namespaces[namespace]; ok {
		namespace = known
	}
	space, err := hex.DecodeString(strings.ReplaceAll(namespace, "-", ""))
	if err != nil || !uuid.MatchString(namespace) {
		return nil, kindError("the namespace of uuid5() must be a UUID, or url, dns or oid")
	}
	id := sha1.Sum(append(space, s[1]...))
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]), nil
}
