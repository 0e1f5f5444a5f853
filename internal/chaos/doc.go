// Package chaos shows that Lockstep survives. It holds no code but tests: each
// is a scenario that has a fault phase, then heals, and must drain by itself.
//
// A scenario runs relays as processes of their own, which can be killed,
// stopped and continued at named points; a PostgreSQL that can be killed, filled
// up or made read-only; toxiproxy between relay and database and between relay
// and court; and writers of the same keys that overlap and linger. The oracle
// is the court's own ledger of every request it read, compared with the events,
// the deliveries and the log: see verify.
//
// The names of the tests begin with the number that docs/guarantees.md gives
// the fault. "make test" runs each once and short, four to a processor; "make
// chaos" many seeds and long, with a table of figures at the end; a seed is
// repeated with -seed.
// "make mutants" builds Lockstep with one mistake after the other, and shows
// which scenario catches it.
//
// The scenarios need Linux: they read /proc, mount a small file system and fake
// a server's clock. It is a module of its own, so that toxiproxy's needs stay
// out of go.mod.
package chaos
