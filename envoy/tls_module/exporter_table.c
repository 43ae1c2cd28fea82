/* connection id → tls-exporter binding. Connection ids are unique in an Envoy process and never reused. */
#include <openssl/crypto.h>
#include <string.h>

#include "module.h"

enum { SHARD_BITS = 6, SHARDS = 1 << SHARD_BITS, BUCKET_BITS = 9, BUCKETS = 1 << BUCKET_BITS };

/* Each shard's lock owns its chains and the entries linked in them. */
static struct shard {
    pthread_mutex_t lock;
    struct exporter_entry *buckets[BUCKETS];
} __attribute__((aligned(64))) shards[SHARDS] = {[0 ... SHARDS - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};

static _Atomic uint64_t entries;

static struct exporter_entry **chain_of(uint64_t connection_id, struct shard **shard) {
    uint64_t hash = connection_id * 0x9e3779b97f4a7c15ULL;
    *shard = &shards[hash >> (64 - SHARD_BITS)];
    return &(*shard)->buckets[(hash >> (64 - SHARD_BITS - BUCKET_BITS)) & (BUCKETS - 1)];
}

static struct exporter_entry **link_to(struct exporter_entry **chain, uint64_t connection_id) {
    while (*chain != NULL && (*chain)->connection_id != connection_id)
        chain = &(*chain)->next;
    return chain;
}

static void write_hex(char hex[EXPORTER_HEX], const unsigned char bytes[EXPORTER_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t index = 0; index < EXPORTER_BYTES; index++) {
        hex[2 * index] = digits[bytes[index] >> 4];
        hex[2 * index + 1] = digits[bytes[index] & 15];
    }
}

bool exporter_table_insert(struct exporter_entry *entry, uint64_t connection_id, const unsigned char exporter[EXPORTER_BYTES]) {
    struct shard *shard;
    struct exporter_entry **chain = chain_of(connection_id, &shard);
    pthread_mutex_lock(&shard->lock);
    struct exporter_entry **place = link_to(chain, connection_id);
    bool free_place = *place == NULL && !entry->present;
    if (free_place) {
        write_hex(entry->hex, exporter);
        entry->connection_id = connection_id;
        entry->next = NULL;
        entry->present = true;
        *place = entry;
        atomic_fetch_add(&entries, 1);
    }
    pthread_mutex_unlock(&shard->lock);
    return free_place;
}

void exporter_table_remove(struct exporter_entry *entry) {
    if (!entry->present)
        return;
    struct shard *shard;
    struct exporter_entry **chain = chain_of(entry->connection_id, &shard);
    pthread_mutex_lock(&shard->lock);
    struct exporter_entry **place = link_to(chain, entry->connection_id);
    if (*place == entry) {
        *place = entry->next;
        atomic_fetch_sub(&entries, 1);
    }
    OPENSSL_cleanse(entry, sizeof *entry);
    pthread_mutex_unlock(&shard->lock);
}

bool exporter_table_find(uint64_t connection_id, char hex[EXPORTER_HEX]) {
    struct shard *shard;
    struct exporter_entry **chain = chain_of(connection_id, &shard);
    pthread_mutex_lock(&shard->lock);
    const struct exporter_entry *found = *link_to(chain, connection_id);
    if (found != NULL)
        memcpy(hex, found->hex, EXPORTER_HEX);
    pthread_mutex_unlock(&shard->lock);
    return found != NULL;
}

uint64_t exporter_table_count(void) { return atomic_load(&entries); }
