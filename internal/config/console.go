package config

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// ListenTLS makes the process serve HTTPS at listen.
type ListenTLS struct {
	CertFile string `yaml:"cert_file" check:"file" doc:"File with the certificate and those between it and the root, in PEM. With key_file, console, health and metrics are served by HTTPS. Read again when it has changed."`
	KeyFile  string `yaml:"key_file" check:"file" doc:"File with the private key of the certificate, in PEM."`
}

// Enabled reports whether listen is served by HTTPS.
func (t ListenTLS) Enabled() bool { return t.CertFile != "" }

// Console are the settings of the pages.
type Console struct {
	Off         bool            `yaml:"off" default:"false" doc:"No pages: listen has only health and metrics."`
	Zone        string          `yaml:"zone" default:"UTC" check:"zone" doc:"Zone of the times on the pages, such as America/New_York."`
	Users       []User          `yaml:"users" doc:"Who may log in, each with a token. Without users and user_header, the pages are for reading only, and only for this machine."`
	UserHeader  string          `yaml:"user_header" check:"header" doc:"Header in which a proxy names the person whom it has authenticated, such as X-Remote-User. Needs proxies."`
	Proxies     []string        `yaml:"proxies" check:"network" doc:"Addresses or networks of the proxies whose user_header, X-Forwarded-For and X-Forwarded-Proto count, such as 10.0.0.5 or 10.0.0.0/24."`
	Operators   []string        `yaml:"operators" check:"person" doc:"Names in user_header of the people who may also act. Everybody else whom the proxy names may read."`
	OperatorURL adapters.Secret `yaml:"operator_url" check:"database" doc:"Database URL of a login in outbox_operator, with which the pages act. The log has that login and the person, as login/person."`
}

// User is a person who may log in to the console.
type User struct {
	Name  string          `yaml:"name" required:"true" check:"person" doc:"Name of the person in the log."`
	Token adapters.Secret `yaml:"token" required:"true" doc:"The token that the person logs in with, at least 16 characters, as ${NAME} or ${file:/path}."`
	May   string          `yaml:"may" default:"read" oneof:"read|operate" doc:"What the person may do: read, or also operate."`
}

// minToken is the least length of a token, in characters.
const minToken = 16

// mostUsers bounds the comparisons of a login.
const mostUsers = 1000

// maxPerson is how much of a person's name the log keeps, in characters.
const maxPerson = 100

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,100}$`)

// Networks returns the addresses of the proxies.
func (c Console) Networks() []netip.Prefix {
	var all []netip.Prefix
	for _, text := range c.Proxies {
		if p, ok := network(text); ok {
			all = append(all, p)
		}
	}
	return all
}

// network reads an address or a network.
func network(text string) (netip.Prefix, bool) {
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err == nil && !p.Addr().Is4In6()
}

// checkPerson refuses names that the log would change.
func (d *decoder) checkPerson(n *node) {
	switch name := n.text; {
	case strings.TrimSpace(name) == "":
		d.at(n, "is empty: write the name of a person, such as j.smith")
	case utf8.RuneCountInString(name) > maxPerson:
		d.at(n, "is longer than %d characters: shorten it", maxPerson)
	case strings.Contains(name, "/") || name != strings.TrimSpace(name) || name != adapters.Clean(name, 0):
		d.at(n, "%s cannot be a person's name in the log: leave out slashes, spaces at its ends and control characters", d.quote(n))
	}
}

// notUserHeaders are headers that have another meaning, and headers that a browser sets.
var notUserHeaders = []string{"Authorization", "Connection", "Cookie", "Host", "Origin", "Referer", "User-Agent", "X-Forwarded-For"}

func (d *decoder) checkHeader(n *node) {
	switch {
	case !headerName.MatchString(n.text):
		d.at(n, "%s is not the name of a header: write one such as X-Remote-User", d.quote(n))
	case slices.Contains(notUserHeaders, http.CanonicalHeaderKey(n.text)):
		d.at(n, "%s does not name a person: write a header that only the proxy sets, such as X-Remote-User", d.quote(n))
	}
}

// checkListenTLS refuses half of a certificate, and one that cannot be used.
func (d *decoder) checkListenTLS(root *node) {
	t, at := d.file.ListenTLS, root.at("listen_tls")
	switch {
	case t.CertFile == "" && t.KeyFile == "":
		return
	case t.CertFile == "":
		d.at(at.at("cert_file"), "is missing: name the file with the certificate of key_file")
		return
	case t.KeyFile == "":
		d.at(at.at("key_file"), "is missing: name the file with the private key of cert_file")
		return
	}
	if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
		d.at(at.at("cert_file"), "and key_file cannot be used: %s; name two files in PEM that belong together and that this user may read", err)
	}
}

// checkConsole refuses settings that have no effect together, or that let nobody in.
func (d *decoder) checkConsole(root *node) {
	c, at := d.file.Console, root.at("console")
	if len(c.Users) > mostUsers {
		d.at(at.at("users"), "has %d users: keep at most %d, or let a proxy name them with user_header", len(c.Users), mostUsers)
		return
	}
	d.checkUsers(c, at)
	header, proxies, operators := at.at("user_header"), at.at("proxies"), at.at("operators")
	if c.UserHeader != "" && len(c.Proxies) == 0 {
		d.at(header, "needs proxies: name the addresses of the proxies, because anybody else can send this header too")
	}
	if c.UserHeader == "" && len(c.Users) == 0 && len(c.Proxies) > 0 {
		d.at(proxies, "has no effect without users and user_header: name those who may log in, or the header in which the proxy names the person, or remove proxies")
	}
	if c.UserHeader == "" && len(c.Operators) > 0 {
		d.at(operators, "has no effect without user_header: users say what they may with may: operate")
	}
	acts := len(c.Operators) > 0 || slices.ContainsFunc(c.Users, func(u User) bool { return u.May == "operate" })
	url := at.at("operator_url")
	switch {
	case acts && c.OperatorURL == "" && url.kind == kindAbsent:
		d.at(url, "is missing: somebody may operate, so name the database URL of a login in outbox_operator")
	case !acts && c.OperatorURL != "":
		d.at(url, "has no effect, because nobody may operate: write may: operate for one of users, or name operators")
	}
	if len(c.Users) > 0 && !c.Off && !d.file.ListenTLS.Enabled() && !listensHere(d.file.Listen) {
		d.warn(at.at("users"), "tokens are sent over plain http, where anybody on the way can read them: configure listen_tls, or listen on 127.0.0.1 behind a proxy with TLS")
	}
}

// checkUsers refuses tokens that are weak, in the file, or of two users.
func (d *decoder) checkUsers(c Console, at *node) {
	for i, u := range c.Users {
		n := at.at("users").items[i]
		if n.kind != kindMap {
			continue // reported
		}
		token := n.at("token")
		switch {
		case token.kind != kindText:
		case token.ref == "" && token.text != "":
			d.at(token, "is written in the file: write ${NAME} or ${file:/path}, so that only a variable or another file has it")
		case strings.TrimSpace(u.Token.Reveal()) != u.Token.Reveal():
			d.at(token, "begins or ends with a space, which is left out of what a person enters: remove the space")
		case utf8.RuneCountInString(u.Token.Reveal()) < minToken:
			d.at(token, "is shorter than %d characters: make one with openssl rand -base64 24", minToken)
		}
		for _, before := range c.Users[:i] {
			if u.Name != "" && before.Name == u.Name {
				d.at(n.at("name"), "%s is the name of two users: rename one of them", d.quote(n.at("name")))
			}
			if u.Token != "" && before.Token == u.Token {
				d.at(token, "is the token of two users, so the log would name one of them only: give each user a token of their own")
			}
		}
	}
}

// listensHere reports whether only this machine can reach an address.
func listensHere(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err != nil || host == "localhost" || ip != nil && ip.IsLoopback()
}
