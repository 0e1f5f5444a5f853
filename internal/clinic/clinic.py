"""A clinic's HL7 interface for tests, made of python-hl7: its MLLP server, parser and ACKs.

It keeps each message once, by MSH-10, and has one appointment for each SCH-1. Commands come
on standard input, a line each. The answer to each is a line of JSON on standard output.
"""
import asyncio
import json
import ssl
import sys

import hl7
import hl7.mllp


class Clinic:
    def __init__(self, tls):
        self.tls = tls
        self.port = 0
        self.server = None
        self.writers = set()
        self.answers = []  # how the next messages are answered
        self.always = "normal"  # how all others are
        self.seen = []  # control ids, each time that one came
        self.held = {}  # messages by control id
        self.appointments = {}
        self.fillers = 0

    async def open(self):
        self.server = await hl7.mllp.start_hl7_server(
            self.serve, "127.0.0.1", self.port, encoding="utf-8", limit=1 << 20, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]

    async def close(self):
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while True:
                message = await reader.readmessage()
                how = self.answers.pop(0) if self.answers else self.always
                control = str(message.segment("MSH")(10))
                if how == "first lost":
                    how = "normal"
                    if control not in self.seen:
                        how = "lost" if len(set(self.seen)) % 2 else "lost before"
                if how == "lost before":
                    self.seen.append(control)
                    return
                ack = self.take(message, how)
                if how == "lost":
                    return
                if how == "silent":
                    continue
                writer.writemessage(ack)
                if how == "twice":
                    writer.writemessage(ack)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.transport.abort()

    def take(self, message, how):
        """Keeps a message and returns its ACK."""
        control = str(message.segment("MSH")(10))
        self.seen.append(control)
        code, problem = "AA", None
        if control not in self.held and how not in ("AE", "AR", "AR header"):
            problem = self.apply(message)
            if problem:
                code = "AE"
            else:
                self.held[control] = str(message)
        if how == "CA":
            code = "CA"
        if how == "AE":
            code, problem = "AE", "ERR||AIL^1^3|103^Table value not found^HL70357|E||||no such room"
        if how == "AR":
            code, problem = "AR", "ERR|||207^Application internal error^HL70357|E"
        if how == "AR header":
            code, problem = "AR", "ERR||MSH^1^12|203^Unsupported version id^HL70357|E"
        if how == "other":
            ack = message.create_ack(code)
            ack.segment("MSA").assign_field("ANOTHER", 2)
            return ack
        ack = message.create_ack(code)
        placer = str(message.segment("SCH")(1))
        lines = [str(ack).rstrip("\r")]
        if problem:
            lines.append(problem)
        elif placer in self.appointments:
            lines.append("ZAP|%s|%s" % (placer, self.appointments[placer]["filler"]))
        return hl7.parse("\r".join(lines) + "\r")

    def apply(self, message):
        """Makes the change of a message, and returns an ERR segment if it cannot."""
        event = str(message.segment("MSH")(9)(1)(2))
        sch = message.segment("SCH")
        placer = str(sch(1))
        now = self.appointments.get(placer)
        booked = now is not None and now["status"] == "booked"
        if event == "S12":
            if booked:
                return "ERR||SCH^1^1|205^Duplicate key identifier^HL70357|E"
            self.fillers += 1
            self.appointments[placer] = {"status": "booked", "filler": "F-%d" % self.fillers, "events": []}
        elif not booked:
            return "ERR||SCH^1^1|204^Unknown key identifier^HL70357|E"
        now = self.appointments[placer]
        now["events"].append(event)
        if event == "S15":
            now["status"] = "cancelled"
        now["start"] = field(message, "SCH", 11, 4)
        now["room"] = field(message, "AIL", 3, 1)
        now["title"] = field(message, "SCH", 7, 2)
        return None


def field(message, segment, number, component):
    try:
        return message.extract_field(segment, 1, number, 1, component)
    except (KeyError, IndexError):
        return ""


async def main():
    tls = None
    if len(sys.argv) > 1:
        cert, key, ca = sys.argv[1:4]
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(cert, key)
        if ca:
            tls.load_verify_locations(ca)
            tls.verify_mode = ssl.CERT_REQUIRED
    clinic = Clinic(tls)
    await clinic.open()
    print(json.dumps({"port": clinic.port}), flush=True)
    while True:
        line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        command, _, rest = line.strip().partition(" ")
        result = None
        if command == "always":
            clinic.always = rest
        elif command == "next":
            clinic.answers = rest.split(",")
        elif command == "away":
            await clinic.close()
        elif command == "back":
            await clinic.open()
        elif command == "seen":
            result = clinic.seen
        elif command == "held":
            result = clinic.held
        elif command == "appointments":
            result = clinic.appointments
        print(json.dumps(result), flush=True)


asyncio.run(main())
