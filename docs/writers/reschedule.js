// Moves a hearing to another room, and writes the event in the same transaction.
//
//   node reschedule.js UUID HEARING ROOM TRACEPARENT
//
// UUID names the request. A second run with the same UUID changes nothing.

const { Client } = require("pg");

// Returns false if this request was committed before.
async function reschedule(client, request, hearing, room, traceparent) {
  try {
    await client.query("BEGIN");
    // First your own row: its lock gives the events of one hearing the order of the commits.
    const moved = await client.query(
      "UPDATE hearing SET room = $1, version = version + 1 WHERE id = $2 RETURNING version, scheduled_at",
      [room, hearing],
    );
    if (moved.rowCount === 0) throw new Error(`there is no hearing ${hearing}`);
    const { version, scheduled_at } = moved.rows[0];
    await client.query(
      "INSERT INTO outbox.event (id, type, key, version, payload, headers) VALUES ($1, $2, $3, $4, $5, $6)",
      [
        request,
        "scheduling:updated",
        hearing,
        version,
        { hearingId: hearing, scheduledAt: scheduled_at.toISOString(), location: room },
        { traceparent },
      ],
    );
    await client.query("COMMIT");
    return true;
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {}); // the connection may be gone: the first error says why
    if (error.code === "23505" && error.schema === "outbox" && error.table === "event") return false;
    throw error;
  }
}

async function main() {
  const client = new Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  try {
    console.log((await reschedule(client, ...process.argv.slice(2))) ? "written" : "already written");
  } catch (error) {
    console.error(`${error.code}: ${error.message}`);
    process.exitCode = 1;
  } finally {
    await client.end();
  }
}

main();
