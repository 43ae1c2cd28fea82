/* Threads insert, find and remove entries of one table, for ThreadSanitizer. Each binding is made from its connection id, so a
 * look-up that returned another connection's binding, or a torn one, shows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "module.h"

enum { THREADS = 8, ROUNDS = 20000, IDS_EACH = 64, CROWD = 20000 };

static void exporter_of(uint64_t id, unsigned char exporter[EXPORTER_BYTES]) {
    for (size_t index = 0; index < EXPORTER_BYTES; index++)
        exporter[index] = (unsigned char)(id * 31 + id / 256 + index * 7);
}

static bool belongs(uint64_t id, const char hex[EXPORTER_HEX]) {
    unsigned char exporter[EXPORTER_BYTES];
    char expected[EXPORTER_HEX + 1];
    exporter_of(id, exporter);
    for (size_t index = 0; index < EXPORTER_BYTES; index++)
        snprintf(expected + 2 * index, 3, "%02x", exporter[index]);
    return memcmp(hex, expected, EXPORTER_HEX) == 0;
}

static void *work(void *argument) {
    uint64_t first = (uint64_t)(uintptr_t)argument * IDS_EACH;
    unsigned int seed = (unsigned int)first + 1;
    struct exporter_entry *entries = calloc(IDS_EACH, sizeof *entries);
    unsigned char exporter[EXPORTER_BYTES];
    char hex[EXPORTER_HEX];
    for (int round = 0; entries != NULL && round < ROUNDS; round++) {
        uint64_t slot = (uint64_t)rand_r(&seed) % IDS_EACH, own = first + slot;
        uint64_t any = (uint64_t)rand_r(&seed) % (THREADS * IDS_EACH);
        exporter_of(own, exporter);
        bool was_present = entries[slot].present;
        if (exporter_table_insert(&entries[slot], own, exporter) == was_present)
            abort();
        if (!exporter_table_find(own, hex) || !belongs(own, hex))
            abort();
        if (exporter_table_find(any, hex) && !belongs(any, hex))
            abort();
        if (rand_r(&seed) % 2 == 0)
            exporter_table_remove(&entries[slot]);
    }
    for (size_t slot = 0; entries != NULL && slot < IDS_EACH; slot++)
        exporter_table_remove(&entries[slot]);
    free(entries);
    return NULL;
}

/* Ids that are absent share buckets with ids that are present, and must find nothing. */
static void crowd(void) {
    struct exporter_entry *entries = calloc(CROWD, sizeof *entries);
    unsigned char exporter[EXPORTER_BYTES];
    char hex[EXPORTER_HEX];
    for (uint64_t index = 0; entries != NULL && index < CROWD; index++) {
        exporter_of(2 * index, exporter);
        if (!exporter_table_insert(&entries[index], 2 * index, exporter))
            abort();
    }
    for (uint64_t index = 0; entries != NULL && index < CROWD; index++)
        if (!exporter_table_find(2 * index, hex) || !belongs(2 * index, hex) || exporter_table_find(2 * index + 1, hex))
            abort();
    for (uint64_t index = 0; entries != NULL && index < CROWD; index++)
        exporter_table_remove(&entries[index]);
    free(entries);
}

/* A connection id that has an entry keeps it: a second one under the same id is turned away. */
static void duplicate(void) {
    struct exporter_entry first = {0}, second = {0};
    unsigned char exporter[EXPORTER_BYTES];
    char hex[EXPORTER_HEX];
    exporter_of(7, exporter);
    bool taken = exporter_table_insert(&first, 7, exporter);
    exporter_of(8, exporter);
    if (!taken || exporter_table_insert(&second, 7, exporter) || !exporter_table_find(7, hex) || !belongs(7, hex))
        abort();
    exporter_table_remove(&second);
    if (!exporter_table_find(7, hex))
        abort();
    exporter_table_remove(&first);
    if (exporter_table_find(7, hex))
        abort();
}

int main(void) {
    pthread_t threads[THREADS];
    crowd();
    duplicate();
    for (uintptr_t index = 0; index < THREADS; index++)
        if (pthread_create(&threads[index], NULL, work, (void *)index) != 0)
            return 2;
    for (size_t index = 0; index < THREADS; index++)
        pthread_join(threads[index], NULL);
    return exporter_table_count() == 0 ? 0 : 1;
}
