<?php

/*
 * A clinic's calendar on PHP's own SoapServer, which reads and writes all SOAP
 * here. It takes one request after the other:
 *
 *   CALENDARS=DIRECTORY php -S 127.0.0.1:0 router.php
 *
 * POST /NAME/BEHAVIOUR is a call of the calendar NAME. All it knows is its log,
 * DIRECTORY/NAME.jsonl: a line per call with what SoapServer read out of the
 * request. BEHAVIOUR is written as a query is:
 *
 *   security=text|digest  calls need a UsernameToken of this form (AGENCY, PASSWORD)
 *   clock=3600            this machine's clock is an hour ahead
 *   busy=2                the first two calls are refused, but may be sent again
 *   fault=Server          every call ends in a fault with this code
 *   status=200            the HTTP status of an answer that would have another
 *   charset=UTF-16        the encoding of answers
 *   doctype=1             answers begin with a document type declaration
 *   down=1                no SOAP at all: 503 with a line of text
 */

declare(strict_types=1);

const AGENCY = 'agency';
const PASSWORD = 'Grüße & <more>';

const WSSE = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd';
const WSU = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd';
const USERNAME_TOKEN = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#';
const BASE64 = 'http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary';

const FRESH = 300; // seconds

/** What SoapServer calls: a method per header block and per operation. */
class Calendar
{
    /** @var array<string, mixed> of the call under way; a line of the log */
    private array $call;

    /** @var list<array<string, mixed>> that were before */
    private array $calls;

    public function __construct(private string $log, private array $behaviour)
    {
        $lines = file_exists($log) ? file($log) : [];
        $this->calls = array_map(fn ($line) => json_decode($line, true, flags: JSON_THROW_ON_ERROR), $lines);
        $this->call = [
            'content_type' => $_SERVER['CONTENT_TYPE'] ?? '',
            'soap_action' => $_SERVER['HTTP_SOAPACTION'] ?? null,
            'idempotency_key' => $_SERVER['HTTP_IDEMPOTENCY_KEY'] ?? '',
        ];
    }

    public function record(int $status): void
    {
        $line = json_encode($this->call + ['status' => $status], JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE);
        file_put_contents($this->log, "$line\n", FILE_APPEND);
    }

    // Header blocks. One that has no method here is not understood.

    public function Agency(string $name): void
    {
        $this->call['agency'] = $name;
    }

    public function MessageID(string $id): void
    {
        $this->call['message_id'] = $id;
    }

    public function Action(string $action): void
    {
        $this->call['action'] = $action;
    }

    public function To(string $address): void
    {
        $this->call['to'] = $address;
    }

    public function Security(stdClass $security): void
    {
        $token = $security->UsernameToken ?? throw self::refused('InvalidSecurity', 'there is no UsernameToken');
        $nonce = $token->Nonce->_ ?? '';
        $created = $token->Created ?? '';
        $form = match ($token->Password->Type ?? '') {
            USERNAME_TOKEN . 'PasswordText' => 'text',
            USERNAME_TOKEN . 'PasswordDigest' => 'digest',
            default => throw self::refused('UnsupportedSecurityToken', 'a password is text or a digest'),
        };
        $this->call['token'] = ['form' => $form, 'nonce' => $nonce, 'created' => $created];
        $this->call['expires'] = $security->Timestamp->Expires ?? null;

        if ($form !== ($this->behaviour['security'] ?? $form)) {
            throw self::refused('UnsupportedSecurityToken', "a password is not $form here");
        }
        $bytes = base64_decode($nonce, strict: true);
        if (!$bytes || ($token->Nonce->EncodingType ?? '') !== BASE64) {
            throw self::refused('InvalidSecurityToken', 'the nonce is not in base64');
        }
        $expected = $form === 'text' ? PASSWORD : base64_encode(sha1($bytes . $created . PASSWORD, binary: true));
        if ($token->Username !== AGENCY || !hash_equals($expected, $token->Password->_)) {
            throw self::refused('FailedAuthentication', 'unknown user or wrong password');
        }
        $now = time() + (int) ($this->behaviour['clock'] ?? 0);
        $expires = $security->Timestamp->Expires ?? null;
        if (abs($now - self::instant($created)) > FRESH || ($expires !== null && self::instant($expires) < $now)) {
            throw new SoapFault([WSU, 'MessageExpired'], 'the message is not of this time');
        }
        foreach ($this->calls as $call) {
            if (($call['token']['nonce'] ?? null) === $nonce) {
                throw self::refused('InvalidSecurityToken', 'the nonce was used before');
            }
        }
        $this->call['authenticated'] = true;
    }

    // Operations.

    public function NotifyHearing(stdClass $hearing): array
    {
        $this->begin('NotifyHearing', $hearing);
        if (!isset($hearing->reference)) { // SoapServer does not miss it
            throw self::wrong('NO_REFERENCE', retryable: false);
        }
        if (!preg_match('/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$/', $hearing->start)) {
            throw self::wrong('BAD_START', retryable: false);
        }
        return ['entryId' => "entry of $hearing->reference", 'result' => $this->store()];
    }

    public function CancelHearing(stdClass $hearing): array
    {
        $this->begin('CancelHearing', $hearing);
        return ['result' => $this->store()];
    }

    private function begin(string $operation, stdClass $parameters): void
    {
        $this->call['operation'] = $operation;
        $this->call['parameters'] = $parameters;
        if (isset($this->behaviour['security']) && !isset($this->call['authenticated'])) {
            throw self::refused('InvalidSecurity', 'there is no Security header');
        }
        if (isset($this->behaviour['fault'])) {
            throw new SoapFault($this->behaviour['fault'], 'so it was ordered, für alle');
        }
        if (count($this->calls) < (int) ($this->behaviour['busy'] ?? 0)) {
            throw self::wrong('BUSY', retryable: true);
        }
    }

    private function store(): string
    {
        $result = 'STORED';
        foreach ($this->calls as $call) {
            if (isset($call['result'], $call['message_id']) && $call['message_id'] === ($this->call['message_id'] ?? null)) {
                $result = 'DUPLICATE';
            }
        }
        return $this->call['result'] = $result;
    }

    private static function instant(string $time): int
    {
        return strtotime($time) ?: throw self::refused('InvalidSecurityToken', 'a time is not readable');
    }

    private static function refused(string $code, string $text): SoapFault
    {
        return new SoapFault([WSSE, $code], $text);
    }

    private static function wrong(string $code, bool $retryable): SoapFault
    {
        return new SoapFault('Client', 'the calendar refused the hearing', null, ['code' => $code, 'retryable' => $retryable], 'CalendarFault');
    }
}

/** Dresses the answer that SoapServer made as the behaviour says. */
function dress(string $answer, array $behaviour): string
{
    if (isset($behaviour['status'])) {
        header("HTTP/1.1 {$behaviour['status']} As ordered");
    }
    if (isset($behaviour['doctype'])) {
        $answer = str_replace("?>\n", "?>\n<!DOCTYPE answer [<!ENTITY result \"STORED\">]>\n", $answer);
    }
    if (isset($behaviour['charset'])) {
        $type = preg_grep('/^Content-Type:/i', headers_list());
        header(str_ireplace('utf-8', $behaviour['charset'], end($type)));
        $answer = iconv('UTF-8', $behaviour['charset'], str_replace('encoding="UTF-8"', "encoding=\"{$behaviour['charset']}\"", $answer));
    }
    header('Content-Length: ' . strlen($answer));
    return $answer;
}

[, $name, $words] = explode('/', $_SERVER['REQUEST_URI']);
parse_str($words, $behaviour);
$calendar = new Calendar(getenv('CALENDARS') . "/$name.jsonl", $behaviour);

if (isset($behaviour['down'])) {
    $calendar->record(503);
    http_response_code(503);
    header('Content-Type: text/plain; charset=utf-8');
    echo "The calendar is being serviced.\n";
    return;
}

// SoapServer ends the script when it refuses a request by itself.
register_shutdown_function(function () use ($calendar, $behaviour): void {
    $answer = dress(ob_get_clean(), $behaviour);
    $calendar->record(http_response_code());
    echo $answer;
});
ob_start();
$server = new SoapServer(__DIR__ . '/calendar.wsdl', ['cache_wsdl' => WSDL_CACHE_NONE, 'features' => SOAP_SINGLE_ELEMENT_ARRAYS]);
$server->setObject($calendar);
$server->handle();
