"""The names, areas, numbers and things of a home that fill the slots of sentence templates."""

from __future__ import annotations

__all__ = ["NAMES", "NUMBERS", "VALUES"]

NUMBERS = {
    "temperature": range(15, 29),
    "color_temperature": range(2000, 6600, 100),
    "timer_seconds": range(5, 60, 5),
    "timer_minutes": range(1, 60),
    "timer_hours": range(1, 13),
}
"""List → numbers; those not named here are percentages."""

_VALUES = {
    "area": """kitchen|living room|bedroom|bathroom|hallway|garage|office|dining room|nursery|guest room|attic|
        basement|garden|laundry room|study|playroom|patio|master bedroom""",
    "floor": "ground|first|second|third|top|upper|lower|main",
    "message": """dinner is ready|we are leaving in ten minutes|the laundry is done|it is time for bed|
        the guests have arrived|please come downstairs|the taxi is here|someone left the fridge open""",
    "search_query": """bohemian rhapsody|some jazz|the beatles|white noise|the daily news|classical piano|
        songs from the eighties|taylor swift|the lord of the rings|abbey road|relaxing music|miles davis|stranger things|
        hotel california|christmas songs|the science hour""",
    "zone": "home|work|school|the gym|the office|the library|the airport",
    "timer_name": "pizza|pasta|egg|laundry|tea|homework|workout|bread|oven|nap|chicken|cake|meeting|rice|dishwasher",
    "timer_command": """turn off the lights|open the garage door|lock the front door|turn on the heating|
        stop the music|close the blinds|start the coffee machine|turn off the television|turn down the volume|
        switch on the fan""",
    "shopping_list_item": """milk|eggs|bread|butter|apples|toilet paper|coffee|olive oil|bananas|cheese|tomatoes|
        dish soap|rice|orange juice|flour|chocolate|batteries|onions""",
    "todo_list_item": """call the dentist|water the plants|pay the rent|book flights|clean the windows|
        walk the dog|renew the passport|buy a birthday present|fix the tap|mow the lawn|return the library books|
        milk|eggs|bread|batteries|toothpaste""",
}
_NAMES = {
    "binary_sensor": "front door|back door|bathroom window|garage door|garden gate|hallway motion sensor|driveway camera",
    "button": "doorbell chime|coffee machine button|router restart",
    "climate": "thermostat|air conditioner|heat pump|bedroom radiator|floor heating|living room thermostat",
    "cover": "left blind|right curtain|garage door|patio awning|bedroom shutter|skylight|roller shade",
    "fan": "ceiling fan|tower fan|bathroom fan|desk fan|extractor fan",
    "input_boolean": "guest mode|vacation mode|away mode",
    "input_button": "fountain button|test alarm",
    "lawn_mower": "lawn mower|robot mower|garden robot|front yard mower",
    "light": """desk lamp|reading light|ceiling light|porch light|floor lamp|bedside lamp|christmas lights|led strip|
        chandelier|night light""",
    "lock": "front door|back door|side door|cellar door|garage lock|garden gate",
    "media_player": "tv|soundbar|kitchen speaker|stereo|record player|bedroom speaker|projector|radio|home theater",
    "person": "anna|james|maria|robert|my wife|grandma|tom",
    "scene": "movie night|good morning|dinner party|relax|bedtime|romantic evening|party time",
    "script": "morning routine|leaving home|clean up|wake up call",
    "sensor": "outdoor humidity|washing machine|energy meter|water tank level|phone battery|rain gauge",
    "switch": "coffee machine|kettle|dehumidifier|aquarium pump|heater|towel rail|dishwasher",
    "todo": "shopping|grocery|chores|packing|work|birthday|hardware store|weekend",
    "vacuum": "vacuum|robot vacuum|dusty|upstairs vacuum",
    "valve": "main water valve|sprinkler valve|garden tap|radiator valve",
    "weather": "london|berlin|new york|the cabin|paris|my hometown|san francisco",
}


def _parts(table: dict[str, str]) -> dict[str, list[str]]:
    return {key: [part.strip() for part in parts.split("|")] for key, parts in table.items()}


VALUES = _parts(_VALUES)
"""List → what may stand in it."""

NAMES = _parts(_NAMES)
"""Kind of device → names that people give one."""
