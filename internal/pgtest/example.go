package pgtest

import (
	"context"
	"fmt"
	"os"
)

// ForExample is [New] for Example functions, which have no testing.TB: the
// caller drops the database. Without a database the process ends.
func ForExample() (databaseURL string, drop func()) {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
			os.Exit(1)
		}
	}
	binary.start.Do(func() { binary.server, binary.err = Start(ctx, Options{}) })
	fail(binary.err)
	binary.migrate.Do(func() { binary.template, binary.templateErr = binary.server.buildTemplate(ctx) })
	fail(binary.templateErr)
	name := databaseName()
	fail(binary.server.CreateDatabase(ctx, name, binary.template))
	return binary.server.URL(name), func() { fail(binary.server.DropDatabase(ctx, name)) }
}
