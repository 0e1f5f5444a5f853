// Package pgtest gives tests and the demo throw-away PostgreSQL databases.
//
// A test package starts with
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// and its tests call [New] for the URL of a migrated database of their own, or [Empty]
// for one without a schema. A test binary has one server, which starts for the first
// test that needs it. Each database is cloned from a template and dropped when its test
// ends. [Start] gives a separate server, which can be killed and booted again.
//
// The server comes from the first of these routes that works:
//
//  1. LOCKSTEP_TEST_DATABASE_URL, a server that already runs. Its user must be
//     allowed to create databases and roles. Test binaries may share it.
//  2. A container, when a Docker engine answers and LOCKSTEP_TEST_IMAGE (default
//     [DefaultImage]) exists or can be pulled within a minute.
//  3. The PostgreSQL programs of this machine: those that pg_config names, those
//     on PATH, or the newest of /usr/lib/postgresql.
//
// LOCKSTEP_TEST_ROUTE (url, container or local) allows only one of them. If none works,
// tests fail and say what to install. No test is skipped.
//
// A local server dies with the process that started it, even if that is killed, and
// listens on the loopback interface only. Its directory is in memory (/dev/shm) if 4
// GiB are free there, otherwise in os.TempDir(). LOCKSTEP_TEST_DIR names another
// directory. If the process is killed, the next start removes the directory. By default
// servers run without fsync: committed data survives [Server.Kill], but not a power
// cut.
package pgtest
