---@meta

-- The types of the module, for language servers; what they mean stands where they are written.

---@class outbox.message what is published; every field is optional
---@field id? string default: what the ID generator makes
---@field namespace? string default ""
---@field key? string messages of one namespace and key keep their order
---@field payload? string
---@field headers? table<string, string> needs lua-cjson
---@field deliver_at? number seconds since the epoch: not to be delivered before

---@class outbox.entry what is read back
---@field id string
---@field namespace string
---@field key? string
---@field payload? string
---@field headers? table<string, string>
---@field created_at number seconds since the epoch
---@field attempts integer failed deliveries so far
---@field last_error? string why the last one failed
---@field died_at? number seconds since the epoch; dead letters only
---@field seq? integer place in the order of commits; dead letters only

---@class outbox.lease
---@field processor_id string
---@field deadline number seconds since the epoch
---@field first_seq integer
---@field last_seq integer math.maxinteger for all that is still to come

---@class outbox.stats
---@field ready integer
---@field delayed integer
---@field dead integer
---@field oldest_age? number seconds since the first ready entry was published
---@field due_at? number when the next delayed entry falls due, seconds since the epoch
---@field leases outbox.lease[]

---@class outbox.error what the store raises
---@field code string
---@field message string

---@class outbox.clock
---@field now fun(): number seconds since the epoch
---@field sleep? fun(seconds: number)

---@alias outbox.id_generator fun(clock: outbox.clock, message: outbox.message): string

---@class outbox.options
---@field prefix? string of the tables' names, default "outbox_"
---@field synchronous? "off"|"normal"|"full"|"extra" default "full"
---@field busy_timeout? number seconds, default 5
---@field clock? outbox.clock|fun(): number default outbox.clock
---@field id_generator? outbox.id_generator|{ generate_id: outbox.id_generator } default uuid_v7

---@class outbox.blob

---@class outbox.transaction
---@field publish fun(self: outbox.transaction, ...: outbox.message): string ...
---@field execute fun(self: outbox.transaction, sql: string, ...: any): integer
---@field rows fun(self: outbox.transaction, sql: string, ...: any): fun(): table<string, any>?

---@class outbox.claim
---@field limit? integer at most that many entries
---@field exclusive? boolean all or nothing

---@class outbox.page
---@field namespace? string
---@field limit? integer default 100
---@field after? integer the seq of the last entry of the page before

---@alias outbox.claim_entries
---| fun(self, processor_id: string, deadline: number, options?: outbox.claim): boolean

---@alias outbox.get_claimed_entries
---| fun(self, processor_id: string, batch_size: integer): outbox.entry[]

---@class outbox.store
---@field migrate fun(self: outbox.store)
---@field publish fun(self: outbox.store, ...: outbox.message): string ...
---@field claim_entries outbox.claim_entries
---@field get_claimed_entries outbox.get_claimed_entries
---@field delete_entries fun(self: outbox.store, ...: string): integer
---@field retry_entry fun(self: outbox.store, id: string, due_at: number, error?: string): boolean
---@field bury_entry fun(self: outbox.store, id: string, error?: string): boolean
---@field dead_entries fun(self: outbox.store, options?: outbox.page): outbox.entry[]
---@field requeue_entries fun(self: outbox.store, ...: string): integer
---@field purge_entries fun(self: outbox.store, ...: string): integer
---@field stats fun(self: outbox.store): outbox.stats
---@field close fun(self: outbox.store)

---@class outbox
---@field _VERSION string
---@field open fun(path: string, options?: outbox.options): outbox.store
---@field clock outbox.clock the system's
---@field uuid_v7 fun(clock?: outbox.clock): string
---@field uuid_v4 fun(): string
---@field blob fun(bytes: string): outbox.blob
