// Package chaos has tests that show how Lockstep survives faults. Each test is a scenario: it causes a
// fault, ends the fault, and then everything must drain without help.
//
// A scenario has these parts. Relays are separate processes, which can be killed, and stopped and
// continued at named points. PostgreSQL can be killed, made read-only, or get a full disk. toxiproxy is
// between relay and database, and between relay and court. Writers write the same keys in overlapping
// and long transactions. The court has a ledger of every request that it read. At the end, verify
// compares the ledger with the events, the deliveries and the log.
//
// The name of a test has the number of its fault in docs/guarantees.md. "make test" runs the short form
// of each test once, four of them per processor. "make chaos" runs the long form with many seeds, and
// prints a table of figures at the end. The flag -seed repeats a seed. "make mutants" builds Lockstep
// with one mistake after the other, and shows which scenario catches it.
//
// The scenarios need Linux, because they read /proc, mount a small file system and fake a server's
// clock. The package is a separate module, so that the dependencies of toxiproxy are not in the main
// go.mod.
package chaos
