package browser

import (
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// users may log in: maria may act, jo may read.
const users = `console: {zone: America/New_York, users: [{name: maria, token: "${MARIA}", may: operate}, {name: jo, token: "${JO}"}], operator_url: "${OPERATOR_URL}"}
`

// usersEnv is the environment with the tokens.
func (w *world) usersEnv() []string {
	w.Helper()
	return []string{"MARIA=" + strings.Repeat("m", 20), "JO=" + strings.Repeat("j", 20), "OPERATOR_URL=" + pgtest.AsRole(w, w.database, "outbox_operator")}
}

// logIn logs a person in, whose token is her first letter, and shows the overview.
func (p *tab) logIn(site, name string) *tab {
	p.Helper()
	return p.visit(site+"/login").fill("token", strings.Repeat(name[:1], 20)).submit("token", 200)
}

func TestAPersonLogsIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := "http://" + w.console(users, w.usersEnv()...)
	p := open(t)
	p.shows(site+"/login", 200, []string{"Log in", "Token"}, "login-light", "login-phone")
	p.visit(site + "/changes?by=maria").says("Log in")
	p.fill("token", "not the token of anybody").submit("token", 403).says("Nobody has this token.").audit("login-wrong-light")
	p.fill("token", strings.Repeat("m", 20)).submit("token", 200).says("Who did what", "maria")
	p.visit(site+"/login").says("You are maria", "may read and act").audit()
	p.click("Log out", 200).says("Log in")
	p.visit(site + "/").says("Log in")
	p.withoutScripts(true).logIn(site, "jo").says("There is no sync yet", "jo")
}
