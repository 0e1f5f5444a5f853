package config

import (
	"net"
	"net/netip"
	"reflect"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// warn reports something that is allowed and probably a mistake.
func (d *decoder) warn(n *node, format string, args ...any) {
	d.warnings = append(d.warnings, d.problem(n.line, n.column, n.path, format, args...))
}

// warnPlainHTTP warns of credentials that the adapter sends over plain http, except to this
// machine.
func (d *decoder) warnPlainHTTP(n *node, config reflect.Value) {
	credential := sendsCredential(config)
	var visit func(*node)
	visit = func(n *node) {
		text := strings.TrimSpace(n.text)
		isURL := n.kind == kindText && (n.key == "url" || strings.HasSuffix(n.key, "_url"))
		if rest, plain := cutScheme(text); isURL && plain && !loopback(rest) && (credential || maskURL(text) != text) {
			d.warn(n, "a credential is sent over plain http, where anybody on the way can read it: use https")
		}
		for _, item := range n.items {
			visit(item)
		}
	}
	visit(n)
}

func cutScheme(url string) (rest string, plain bool) {
	const scheme = "http://"
	if len(url) < len(scheme) || !strings.EqualFold(url[:len(scheme)], scheme) {
		return "", false
	}
	return url[len(scheme):], true
}

// loopback reports whether the host of a URL without its scheme is this machine.
func loopback(rest string) bool {
	host := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host = rest[:i]
	}
	host = host[strings.LastIndex(host, "@")+1:]
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") { // RFC 6761, 6.3
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

// sendsCredential reports whether a configuration has a secret that is sent. Those in a list
// and those with the tag signs sign requests; headers are secret only if their name says so.
func sendsCredential(v reflect.Value) bool {
	secret := reflect.TypeFor[adapters.Secret]()
	switch v.Kind() {
	case reflect.String:
		return v.Type() == secret && v.Len() > 0
	case reflect.Pointer:
		return !v.IsNil() && sendsCredential(v.Elem())
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			if f.Type != reflect.SliceOf(secret) && f.Tag.Get("signs") == "" && sendsCredential(v.FieldByIndex(f.Index)) {
				return true
			}
		}
	case reflect.Map:
		for entry := v.MapRange(); entry.Next(); {
			named := v.Type().Elem() != secret || adapters.Sensitive(entry.Key().String())
			if named && sendsCredential(entry.Value()) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if sendsCredential(v.Index(i)) {
				return true
			}
		}
	default:
	}
	return false
}
