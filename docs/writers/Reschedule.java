import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.UUID;
import org.postgresql.util.PSQLException;

/**
 * Moves a hearing to another room, and writes the event in the same transaction.
 *
 * <pre>java -cp postgresql.jar Reschedule.java UUID HEARING ROOM TRACEPARENT</pre>
 *
 * UUID names the request. A second run with the same UUID changes nothing.
 */
public class Reschedule {
    /** Returns false if this request was committed before. The connection has no autocommit. */
    static boolean reschedule(Connection db, UUID request, String hearing, String room, String traceparent)
            throws SQLException {
        // First your own row: its lock gives the events of one hearing the order of the commits.
        var move = "UPDATE hearing SET room = ?, version = version + 1 WHERE id = ?";
        var insert = """
            INSERT INTO outbox.event (id, type, key, version, payload, headers)
            SELECT ?, 'scheduling:updated', id, version,
                   jsonb_build_object('hearingId', id, 'scheduledAt', scheduled_at, 'location', room),
                   jsonb_build_object('traceparent', ?::text)
              FROM hearing WHERE id = ?""";
        try (var moving = db.prepareStatement(move); var inserting = db.prepareStatement(insert)) {
            moving.setString(1, room);
            moving.setString(2, hearing);
            if (moving.executeUpdate() == 0) {
                throw new SQLException("there is no hearing " + hearing);
            }
            inserting.setObject(1, request);
            inserting.setString(2, traceparent);
            inserting.setString(3, hearing);
            inserting.executeUpdate();
            db.commit();
            return true;
        } catch (SQLException error) {
            try {
                db.rollback();
            } catch (SQLException lost) { // the connection may be gone: the first error says why
                error.addSuppressed(lost);
            }
            if (error instanceof PSQLException refused && "23505".equals(refused.getSQLState())
                    && "outbox".equals(refused.getServerErrorMessage().getSchema())
                    && "event".equals(refused.getServerErrorMessage().getTable())) {
                return false;
            }
            throw error;
        }
    }

    public static void main(String[] args) throws SQLException {
        try (var db = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            db.setAutoCommit(false);
            var written = reschedule(db, UUID.fromString(args[0]), args[1], args[2], args[3]);
            System.out.println(written ? "written" : "already written");
        } catch (SQLException error) {
            System.err.println(error.getSQLState() + ": " + error.getMessage());
            System.exit(1);
        }
    }
}
