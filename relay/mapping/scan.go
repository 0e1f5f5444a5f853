package mapping

import "bytes"

// The scanner finds the values that a mapping reads, and does not decode the rest. Its input
// must be valid JSON: checkPayload runs first.

// sourceNode is a name in a path that a mapping reads.
type sourceNode struct {
	path string
	slot int // -1 if only its members are read
	kids map[string]*sourceNode
}

// slot is the value that was found for one source path.
type slot struct {
	raw     []byte // JSON of the value; nil if it is missing
	blocked string // the first part of the path whose value is not an object
}

func (n *sourceNode) child(name string) *sourceNode {
	if kid := n.kids[name]; kid != nil {
		return kid
	}
	path := name
	if n.path != "" {
		path = n.path + "." + name
	}
	if n.kids == nil {
		n.kids = make(map[string]*sourceNode)
	}
	kid := &sourceNode{path: path, slot: -1}
	n.kids[name] = kid
	return kid
}

// scanObject fills slots from the object at the start of b. If a name appears twice, its last
// value is used, as in encoding/json.
func scanObject(b []byte, n *sourceNode, slots []slot) {
	i := skipSpace(b, skipSpace(b, 0)+1)
	for b[i] != '}' {
		if b[i] == ',' {
			i = skipSpace(b, i+1)
		}
		end := skipString(b, i)
		kid := n.lookup(b[i:end])
		i = skipSpace(b, skipSpace(b, end)+1) // the colon
		end = skipValue(b, i)
		if kid != nil {
			kid.found(b[i:end], slots)
		}
		i = skipSpace(b, end)
	}
}

func (n *sourceNode) lookup(quoted []byte) *sourceNode {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return n.kids[string(quoted[1:len(quoted)-1])] // does not allocate
	}
	return n.kids[unquote(quoted)]
}

func (n *sourceNode) found(raw []byte, slots []slot) {
	if n.slot >= 0 {
		slots[n.slot] = slot{raw: raw}
	}
	if n.kids == nil {
		return
	}
	var blocked string
	if raw[0] != '{' && raw[0] != 'n' {
		blocked = n.path
	}
	n.reset(blocked, slots)
	if raw[0] == '{' {
		scanObject(raw, n, slots)
	}
}

func (n *sourceNode) reset(blocked string, slots []slot) {
	for _, kid := range n.kids {
		if kid.slot >= 0 {
			slots[kid.slot] = slot{blocked: blocked}
		}
		kid.reset(blocked, slots)
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue returns the index after the value that starts at i. It counts the depth, and does
// not use recursion.
func skipValue(b []byte, i int) int {
	depth := 0
	for {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\n', '\t', '\r':
			i++
			continue
		default:
			for i < len(b) && !isDelimiter(b[i]) {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}

func isDelimiter(c byte) bool {
	switch c {
	case ',', '}', ']', ' ', '\n', '\t', '\r':
		return true
	}
	return false
}

// appendCompact appends raw without the white space between its tokens. Nothing else changes,
// so numbers keep their digits.
func appendCompact(dst, raw []byte) []byte {
	if raw[0] != '{' && raw[0] != '[' {
		return append(dst, raw...)
	}
	for i := 0; i < len(raw); {
		switch raw[i] {
		case '"':
			end := skipString(raw, i)
			dst = append(dst, raw[i:end]...)
			i = end
		case ' ', '\n', '\t', '\r':
			i++
		default:
			dst = append(dst, raw[i])
			i++
		}
	}
	return dst
}
