package outbox_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// The error of a failed connection is one line. It has the reason once for each address. It has
// no password, and does not mention TLS if TLS is not the cause.
func TestTheErrorOfAFailedConnectionIsOneLine(t *testing.T) {
	hangsUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangsUp.Close()
	go func() {
		for {
			conn, err := hangsUp.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	there, err := url.Parse(pgtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	const user = "postgres://relay:secret-canary@"
	for name, c := range map[string]struct{ url, want string }{
		"refused":         {user + "127.0.0.1:1/agency", `cannot connect to database "agency" as relay: 127.0.0.1:1: connection refused`},
		"two hosts":       {user + "127.0.0.1:1,127.0.0.1:2/agency", `cannot connect to database "agency" as relay: 127.0.0.1:1: connection refused; 127.0.0.1:2: connection refused`},
		"TLS is a must":   {user + "127.0.0.1:1/agency?sslmode=require", `cannot connect to database "agency" as relay: 127.0.0.1:1: connection refused`},
		"no socket":       {user + "/agency?host=/nowhere", `cannot connect to database "agency" as relay: /nowhere/.s.PGSQL.5432: no such file or directory`},
		"no TLS there":    {user + there.Host + "/agency?sslmode=require", `cannot connect to database "agency" as relay: ` + there.Host + ": tls error: server refused TLS connection"},
		"no such login":   {user + there.Host + "/agency", `cannot connect to database "agency" as relay: ` + there.Host + `: failed SASL auth: FATAL: password authentication failed for user "relay" (SQLSTATE 28P01)`},
		"it hangs up":     {user + hangsUp.Addr().String() + "/agency", `cannot connect to database "agency" as relay: ` + hangsUp.Addr().String() + ": failed to receive message: "},
		"no such machine": {user + "nowhere.invalid/agency", `cannot connect to database "agency" as relay: lookup nowhere.invalid`},
	} {
		t.Run(name, func(t *testing.T) {
			err := openStore(t, c.url, outbox.Options{}).Check(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %s", err, c.want)
			}
			text := err.Error()
			if strings.Contains(text, "canary") || strings.Contains(text, "\n") || strings.Count(text, "connection refused") > 2 || strings.Contains(text, "->") {
				t.Errorf("got %s", text)
			}
			if _, ok := errors.AsType[*pgconn.ConnectError](fmt.Errorf("x: %w", err)); !ok {
				t.Error("the driver's error is gone")
			}
		})
	}
}
