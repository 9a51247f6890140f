/* Doubly linked lists of slots, by their numbers. Under the mutex.
 *
 * A link that leads nowhere is not followed: the table is marked as damaged, and rebuilt before the mutex is given up.
 */
#include "blocktable.h"

/* Statistics read it without the mutex. */
static void set_count(struct list *list, uint32_t count)
{
    __atomic_store_n(&list->count, count, __ATOMIC_RELAXED);
}

/* The slot that a link names, or NULL. */
static struct slot *follow(struct table *table, uint32_t at)
{
    if (at < table->slot_count) {
        return &table->slots[at];
    }
    table->damaged = true;
    return NULL;
}

static uint32_t end_of(struct table *table, const struct list *list, uint32_t at)
{
    if ((at == NIL) != (list->count == 0)) {
        table->damaged = true;
        return NIL;
    }
    return at == NIL || follow(table, at) ? at : NIL;
}

uint32_t list_head(struct table *table, enum list_name name)
{
    const struct list *list = &table->segment->lists[name];
    return end_of(table, list, list->head);
}

uint32_t list_tail(struct table *table, enum list_name name)
{
    const struct list *list = &table->segment->lists[name];
    return end_of(table, list, list->tail);
}

void list_push_head(struct table *table, enum list_name name, uint32_t at)
{
    struct list *list = &table->segment->lists[name];
    struct slot *slot = &table->slots[at];
    uint32_t next = list_head(table, name);
    store_byte(&slot->list, (uint8_t)name);
    slot->previous = NIL;
    slot->next = next;
    if (next == NIL) {
        list->tail = at;
    } else {
        table->slots[next].previous = at;
    }
    list->head = at;
    set_count(list, list->count + 1);
}

void list_push_tail(struct table *table, enum list_name name, uint32_t at)
{
    struct list *list = &table->segment->lists[name];
    struct slot *slot = &table->slots[at];
    uint32_t previous = list_tail(table, name);
    store_byte(&slot->list, (uint8_t)name);
    slot->next = NIL;
    slot->previous = previous;
    if (previous == NIL) {
        list->head = at;
    } else {
        table->slots[previous].next = at;
    }
    list->tail = at;
    set_count(list, list->count + 1);
}

void list_remove(struct table *table, uint32_t at)
{
    struct slot *slot = &table->slots[at];
    if (slot->list == LIST_NONE || slot->list >= LISTS) {
        return;
    }
    struct list *list = &table->segment->lists[slot->list];
    struct slot *previous = slot->previous == NIL ? NULL : follow(table, slot->previous);
    struct slot *next = slot->next == NIL ? NULL : follow(table, slot->next);
    if (table->segment->hand == at) {
        table->segment->hand = slot->previous;
    }
    *(previous ? &previous->next : &list->head) = slot->next;
    *(next ? &next->previous : &list->tail) = slot->previous;
    set_count(list, list->count - 1);
    store_byte(&slot->list, LIST_NONE);
}

void lists_clear(struct table *table)
{
    for (int list = 0; list < LISTS; list++) {
        table->segment->lists[list] = (struct list){.head = NIL, .tail = NIL};
    }
    table->segment->hand = NIL;
}
