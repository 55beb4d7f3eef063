---@meta

-- The types of the module, for language servers. The functions are documented where they are
-- written.

---@class outbox.message what is published; every field is optional
---@field id? string default: what the ID generator makes
---@field namespace? string default ""
---@field key? string|integer messages of one namespace and key keep their order; 7 is the text "7"
---@field payload? string
---@field headers? table<string, string> needs lua-cjson
---@field deliver_at? number seconds since the epoch: deliver no earlier

---@class outbox.entry what is read back
---@field id string
---@field namespace string
---@field key? string
---@field payload? string
---@field headers? table<string, string>
---@field created_at number seconds since the epoch
---@field attempts integer failed deliveries so far
---@field last_error? string why the last one failed
---@field source_id? string of a copy, the id of the message: see `store:subscribe`
---@field died_at? number seconds since the epoch; dead letters only
---@field due_at? number seconds since the epoch; delayed ones only, when listed
---@field seq integer place in the order of commits; of a delayed one that is listed, its own

---@class outbox.subscription
---@field namespace string
---@field copy string the namespace of the copies

---@class outbox.paused
---@field namespace string
---@field paused_at number seconds since the epoch

---@class outbox.lease
---@field lease integer its number; none has it again
---@field processor_id string
---@field namespaces? string[]|{ except: string[] } nil: all
---@field classes integer its share of the keys, of 64; 0: it stands by
---@field first_seq integer of a processor math.mininteger
---@field last_seq integer of a processor math.maxinteger
---@field deadline number seconds since the epoch
---@field claimed_at number seconds since the epoch
---@field held? string the places of the entries in hand; nil: none

---@class outbox.stats
---@field ready integer
---@field delayed integer
---@field dead integer
---@field retries integer delayed entries that were ready before
---@field last_seq integer the highest seq that a ready entry ever had
---@field oldest_age? number seconds since the first ready entry was published
---@field due_at? number when the next delayed entry falls due, seconds since the epoch
---@field leases outbox.lease[]

---@class outbox.error what is raised when an operation fails
---@field code string a stable name
---@field message string for people
---@field cause? any the value that caused the error, where it was made in Lua

---@class outbox.clock
---@field now fun(): number seconds since the epoch
---@field sleep? fun(seconds: number)

---@alias outbox.id_generator fun(clock: outbox.clock, message: outbox.message): string

---@class outbox.options
---@field prefix? string of the tables' names, default "outbox_"
---@field mode? "create"|"write"|"read" default "create"
---@field synchronous? "off"|"normal"|"full"|"extra" default "full"
---@field busy_timeout? number seconds, default 5
---@field clock? outbox.clock|fun(): number default outbox.clock
---@field id_generator? outbox.id_generator|{ generate_id: outbox.id_generator } default UUIDv7

---@class outbox.attach_options
---@field prefix? string of the tables' names, default "outbox_"
---@field clock? outbox.clock|fun(): number default outbox.clock
---@field id_generator? outbox.id_generator|{ generate_id: outbox.id_generator } default UUIDv7

---@class outbox.attach_postgres_options also those of outbox.attach_options
---@field dialect? "sqlite"|"postgres" of a function, default "sqlite"
---@field schema? string of the tables, default: found by the search_path
---@field synchronous? "off" the session's synchronous_commit = off is meant

---@class outbox.blob made by outbox.blob

---@class outbox.transaction
---@field publish fun(self: outbox.transaction, ...: outbox.message): string ...
---@field execute fun(self: outbox.transaction, sql: string, ...: any): integer
---@field rows fun(self: outbox.transaction, sql: string, ...: any): fun(): table<string, any>?

---@class outbox.claim
---@field limit? integer at most this many entries

---@class outbox.page
---@field namespace? string
---@field limit? integer default 100
---@field after? integer the seq of the last entry of the page before
---@field reverse? boolean from the last to the first

---@alias outbox.claimed boolean
---@alias outbox.claim_entries
---| fun(self, id: string, by: number, o?: outbox.claim): outbox.claimed, number?

---@class outbox.selection
---@field hold? boolean note in the claim that these entries are in hand
---@field batch_bytes? integer default any number

---@alias outbox.get_claimed_entries
---| fun(self, id: string, size: integer, options?: outbox.selection): outbox.entry[]

---@alias outbox.retry_entry
---| fun(self, entry: string|outbox.entry, due_at: number, error?: string): boolean

---@alias outbox.start_heartbeat
---| fun(self, processor_id: string, interval: number, max_duration: number)

---@class outbox.store
---@field migrate fun(self: outbox.store)
---@field publish fun(self: outbox.store, ...: outbox.message): string ...
---@field claim_entries outbox.claim_entries
---@field get_claimed_entries outbox.get_claimed_entries
---@field delete_entries fun(self: outbox.store, ...: string|outbox.entry): integer
---@field retry_entry outbox.retry_entry
---@field bury_entry fun(self: outbox.store, entry: string|outbox.entry, error?: string): boolean
---@field renew_claim fun(self: outbox.store, processor_id: string, deadline: number): boolean
---@field release_claim fun(self: outbox.store, processor_id: string)
---@field start_heartbeat outbox.start_heartbeat
---@field stop_heartbeat fun(self: outbox.store)
---@field wait fun(self: outbox.store, timeout: number): boolean, number?
---@field pollfd fun(self: outbox.store): integer?
---@field clock fun(self: outbox.store): outbox.clock
---@field prefix fun(self: outbox.store): string
---@field ready_entries fun(self: outbox.store, options?: outbox.page): outbox.entry[]
---@field delayed_entries fun(self: outbox.store, options?: outbox.page): outbox.entry[]
---@field dead_entries fun(self: outbox.store, options?: outbox.page): outbox.entry[]
---@field find_entries fun(self: outbox.store, id: string): outbox.entry[]
---@field requeue_entries fun(self: outbox.store, ...: string): integer
---@field purge_entries fun(self: outbox.store, ...: string): integer
---@field subscribe fun(self: outbox.store, namespace: string, copy: string): boolean
---@field unsubscribe fun(self: outbox.store, namespace: string, copy: string): boolean
---@field subscriptions fun(self: outbox.store): outbox.subscription[]
---@field pause fun(self: outbox.store, namespace: string): boolean
---@field resume fun(self: outbox.store, namespace: string): boolean
---@field paused fun(self: outbox.store): outbox.paused[]
---@field stats fun(self: outbox.store): outbox.stats
---@field close fun(self: outbox.store)

---@class outbox.failure what a publisher returns for a message that failed, or the reason alone
---@field reason? any
---@field permanent? boolean a dead letter at once
---@field retry_after? number seconds, at most an hour
---@field uncharged? boolean no attempt is counted; with retry_after, it waits that long

---@alias outbox.failures nil|boolean|table<integer, outbox.failure|any>
---@alias outbox.publish fun(messages: outbox.entry[], namespace: string): outbox.failures, any

---@class outbox.publisher_table
---@field publish function
---@field batch_size? integer
---@field ordered? boolean
---@field namespaces? string[]

---@class outbox.publisher made by outbox.publisher
---@field publish fun(self: outbox.publisher, messages: outbox.entry[], namespace: string): ...
---@field batch_size? integer the size that suits it best
---@field ordered? boolean it keeps the order of a key itself, so a call may have several of one key
---@field close fun(self: outbox.publisher)

---@class outbox.redis_options
---@field stream? string default "outbox:{namespace}"
---@field maxlen? integer
---@field user? string
---@field password? string
---@field timeout? number seconds, default 5
---@field ca_file? string
---@field cert_file? string
---@field key_file? string

---@class outbox.nats_options
---@field subject? string default "outbox.{namespace}"
---@field stream? string
---@field mode? "plain"|"cloudevents" default "plain"
---@field source? string default "/outbox"
---@field type? string default "outbox.{namespace}"
---@field user? string
---@field password? string
---@field token? string
---@field credentials? string
---@field timeout? number seconds, default 5
---@field ca_file? string
---@field cert_file? string
---@field key_file? string
---@field verify? boolean default true

---@class outbox.mqtt_options
---@field topic? string default "outbox/{namespace}/{key}"
---@field mode? "plain"|"cloudevents" default "plain"
---@field source? string default "/outbox"
---@field type? string default "outbox.{namespace}"
---@field mandatory? boolean default false
---@field retain? boolean default false
---@field expiry? integer seconds
---@field client_id? string
---@field user? string
---@field password? string
---@field timeout? number seconds, default 5
---@field ca_file? string
---@field cert_file? string
---@field key_file? string
---@field verify? boolean default true

---@class outbox.amqp_options
---@field exchange? string default "", the default exchange
---@field routing_key? string default "outbox.{namespace}"
---@field mandatory? boolean default true
---@field mode? "plain"|"cloudevents" default "plain"
---@field source? string default "/outbox"
---@field type? string default "outbox.{namespace}"
---@field user? string
---@field password? string
---@field timeout? number seconds, default 5
---@field ca_file? string
---@field cert_file? string
---@field key_file? string
---@field verify? boolean default true

---@class outbox.kafka_options
---@field topic? string default "outbox.event.{namespace}"
---@field mode? "plain"|"cloudevents" default "plain"
---@field source? string default "/outbox"
---@field type? string default "outbox.{namespace}"
---@field user? string
---@field password? string
---@field mechanism? "PLAIN"|"SCRAM-SHA-256"|"SCRAM-SHA-512" default "PLAIN"
---@field tls? boolean default false
---@field ca_file? string
---@field cert_file? string
---@field key_file? string
---@field verify? boolean default true
---@field compression? "none"|"gzip"|"snappy"|"lz4"|"zstd" default "none"
---@field timeout? number seconds, default 10
---@field config? table<string, string|number|boolean> of librdkafka

---@class outbox.http_request what the option `sign` is called with
---@field method string
---@field host string perhaps with a port
---@field path string with the query
---@field headers table<string, string> names in lower case
---@field body string
---@field messages outbox.entry[]
---@field namespace string

---@class outbox.http_options
---@field mode? "binary"|"batched" default "binary"
---@field source? string default "/outbox"
---@field type? string default "outbox.{namespace}"
---@field headers? table<string, string>
---@field secret? string "whsec_..."
---@field timeout? number seconds, default 10
---@field concurrency? integer default 8
---@field ca_file? string
---@field verify? boolean default true
---@field proxy? string a URL; "" for none
---@field sign? fun(request: outbox.http_request) may change headers, path and body

---@class outbox.exec_options
---@field timeout? number seconds, default 30

---@alias outbox.publisher_options
---| outbox.redis_options
---| outbox.nats_options
---| outbox.amqp_options
---| outbox.mqtt_options
---| outbox.kafka_options
---| outbox.http_options
---| outbox.exec_options
---@alias outbox.destination string|table<string, string|outbox.publish|{ publish: function }>

---@class outbox.retry
---@field base? number seconds, default 1
---@field factor? number default 2
---@field cap? number seconds, default 300
---@field max_attempts? integer default 10

---@class outbox.batch the argument of the hook on_batch
---@field size integer
---@field delivered integer
---@field retried integer
---@field dead integer
---@field seconds number how long the publisher took

---@class outbox.processor_options
---@field store outbox.store
---@field publisher outbox.publish|outbox.publisher_table
---@field processor_id? string
---@field batch_size? integer default the publisher's, or 20
---@field batch_bytes? integer default 8 MiB
---@field claim_duration? number seconds, default 2
---@field publish_timeout? number seconds, default 60
---@field rate? { per_second: number } of each namespace
---@field process_interval? number seconds, default 10
---@field ordering? "key"|"none"|"strict" default "key"
---@field namespaces? string[]|{ except: string[] } to serve, default the publisher's, or all
---@field retry? outbox.retry|fun(entry: outbox.entry, attempts: integer): number?
---@field on_delivered? fun(entry: outbox.entry)
---@field on_retry? fun(entry: outbox.entry, reason: string, delay: number)
---@field on_dead? fun(entry: outbox.entry, reason: string)
---@field on_batch? fun(batch: outbox.batch)
---@field on_error? fun(problem: any)

---@class outbox.processor_stats
---@field delivered integer
---@field retried integer
---@field deferred integer
---@field dead integer
---@field batches integer
---@field errors integer
---@field lost integer
---@field waits integer
---@field latency { count: integer, sum: number, max: number }
---@field last_delivered_at? number
---@field down { namespace: string, down_since: number, error?: string, probe_at: number }[]

---@class outbox.inbox_options
---@field store outbox.store
---@field retention? number seconds, default a year

---@class outbox.inbox
---@field once fun(self, id: string, fn: fun(txn: outbox.transaction): ...): boolean, ...

---@class outbox.testing.clock: outbox.clock
---@field time number
---@field advance fun(seconds: number)

---@class outbox.signals
---@field caught fun(self: outbox.signals): string?
---@field pollfd fun(self: outbox.signals): integer?
---@field events fun(self: outbox.signals): string
---@field timeout fun(self: outbox.signals)
---@field close fun(self: outbox.signals)

---@class outbox.testing.publisher
---@field messages outbox.entry[]
---@field calls { namespace: string, messages: outbox.entry[] }[]
---@field ordered? boolean may be set: see outbox.publisher
---@field publish fun(self, messages: outbox.entry[], namespace: string): table<integer, any>?
---@field fail fun(self, match: string|function, reason: any, times?: integer)
---@field raise fun(self, value: any, times?: integer)
---@field recover fun(self)

---@class outbox
---@field _VERSION string
---@field LAPSED string last_error of an entry that was in hand when its processor died
---@field OVERTIME string the same, after its call took longer than the heartbeat lasts
---@field processor fun(options: outbox.processor_options): outbox.processor
---@field publisher fun(to: outbox.destination, o?: outbox.publisher_options): outbox.publisher
---@field inbox fun(options: outbox.inbox_options): outbox.inbox
---@field signals fun(...: "SIGHUP"|"SIGINT"|"SIGTERM"): outbox.signals
---@field install fun()
---@field attach fun(connection: userdata|table|function, o?: outbox.attach_options): outbox.store
---@field open fun(path: string, options?: outbox.options): outbox.store
---@field clock outbox.clock the system's clock
---@field uuid_v7 fun(clock?: outbox.clock): string
---@field uuid_v4 fun(): string
---@field blob fun(bytes: string): outbox.blob
